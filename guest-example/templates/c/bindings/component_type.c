// The symbol of an object file with the types of wit/, for which `leasehold componentize --wit` reads wit/ itself.
void __component_type_object_force_link_service(void) {}
