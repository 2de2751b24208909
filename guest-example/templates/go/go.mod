module service

go 1.25

// Memory and types of the bindings.
require go.bytecodealliance.org/pkg v0.2.1
