//! Pushes: a component and its configuration become an artifact.

use http::HeaderValue;
use oci_client::{
    RegistryOperation,
    client::{Config, ImageLayer},
    manifest::OciImageManifest,
};
use serde_json::json;

use crate::{
    error::Error,
    manifest::{CONFIG, LAYER, MANIFESTS},
    pull::Artifacts,
    reference::Reference,
    store,
};

/// Operating system of a component in its configuration; the format has no other word for the component model.
const SYSTEM: &str = "wasip2";
/// Time of creation in every configuration: the same component is the same artifact, whenever it is pushed.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Imports and exports of a component, which its configuration lists for those who look for one.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Names of the imported interfaces.
    pub imports: Vec<String>,
    /// Names of the exported interfaces.
    pub exports: Vec<String>,
}

/// An artifact in a registry.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pushed {
    /// Digest of its manifest.
    pub digest: String,
}

impl Artifacts {
    /// Pushes a component under a tag, in the CNCF's format for WebAssembly, which `wkg` and `wash` read as well. The caller
    /// limits the time, and has checked that the bytes are a component.
    pub async fn push(&self, reference: &Reference, component: Vec<u8>, world: &World) -> Result<Pushed, Error> {
        if reference.digest().is_some() {
            return Err(Error::Invalid(format!(
                "{reference}: a push needs a tag; the digest follows from the content"
            )));
        }
        let layer_digest = store::digest(&mut &*component).map_err(|error| Error::Cache(error.to_string()))?;
        let config = json!({
            "created": CREATED,
            "architecture": "wasm",
            "os": SYSTEM,
            "layerDigests": [layer_digest],
            "component": { "imports": world.imports, "exports": world.exports, "target": null },
        });
        let config = Config::new(config.to_string().into_bytes(), CONFIG.to_owned(), None);
        let layer = ImageLayer::new(component, LAYER.to_owned(), None);
        let (client, credentials) = self.push_session(reference).await?;
        let (image, failed) =
            (reference.at(reference.registry()), |error| Error::of(error, reference.registry(), &reference.name()));
        let mut manifest = OciImageManifest::build(std::slice::from_ref(&layer), &config, None);
        manifest.media_type = Some(MANIFESTS[0].to_owned());
        let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::Invalid(error.to_string()))?;
        client.auth(&image, &credentials, RegistryOperation::Push).await.map_err(failed)?;
        client.push_blob(&image, layer.data, &manifest.layers[0].digest).await.map_err(failed)?;
        client.push_blob(&image, config.data, &manifest.config.digest).await.map_err(failed)?;
        // Of these bytes, whatever the tag leads to by now.
        let digest = store::digest(&mut &*bytes).map_err(|error| Error::Cache(error.to_string()))?;
        client.push_manifest_raw(&image, bytes, HeaderValue::from_static(MANIFESTS[0])).await.map_err(failed)?;
        Ok(Pushed { digest })
    }
}
