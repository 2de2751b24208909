//! The resource behind a component's `registration` handle.

use std::sync::Arc;

use crate::registration::ComponentRegistration;

/// Entry of a store's resource table for one handle. The registration itself stays with the component.
#[derive(Debug)]
pub struct Handle(pub(crate) Arc<ComponentRegistration>);
