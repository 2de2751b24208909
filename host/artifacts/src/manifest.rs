//! Manifests: which blob of an artifact is the component.

use oci_client::manifest::{OciDescriptor, OciManifest};
use serde_json::from_slice;

use crate::{
    error::{Error, brief},
    reference::is_sha256,
};

/// Media type of a component, in the CNCF's artifact format and in the formats before it.
pub(crate) const LAYER: &str = "application/wasm";
const FORMER_LAYERS: [&str; 2] =
    ["application/vnd.wasm.content.layer.v1+wasm", "application/vnd.module.wasm.content.layer.v1+wasm"];
/// Media type of the configuration that belongs to it.
pub(crate) const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// Media types of manifests.
pub(crate) const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// Largest component.
const MAX_BYTES: i64 = 512 << 20;

/// The blob of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) bytes: u64,
}

impl Layer {
    /// The only component of a manifest.
    pub(crate) fn of(manifest: &[u8], name: &str) -> Result<Self, Error> {
        let unusable = |why: &str| Error::Unusable(format!("{name} is no component: {why}"));
        let parsed: OciManifest = from_slice(manifest).map_err(|error| unusable(&format!("its manifest: {error}")))?;
        let OciManifest::Image(image) = parsed else {
            return Err(unusable("it is an index of several artifacts; take the digest of one of them"));
        };
        let is_component = |layer: &&OciDescriptor| {
            let kind = layer.media_type.as_str();
            kind == LAYER || FORMER_LAYERS.contains(&kind)
        };
        let mut components = image.layers.iter().filter(is_component);
        let (Some(layer), None) = (components.next(), components.next()) else {
            let kinds: Vec<_> = image.layers.iter().map(|layer| layer.media_type.as_str()).take(4).collect();
            return Err(unusable(&format!("it needs one layer of {LAYER}, and has [{}]", brief(&kinds.join(", ")))));
        };
        if !is_sha256(&layer.digest) {
            return Err(unusable("its layer has no digest of SHA-256"));
        }
        match u64::try_from(layer.size) {
            Ok(bytes) if layer.size <= MAX_BYTES => Ok(Self { digest: layer.digest.clone(), bytes }),
            _ => Err(unusable(&format!("its layer has {} bytes, more than {MAX_BYTES}", layer.size))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{CONFIG, LAYER, Layer, MANIFESTS};

    fn manifest(layers: &Value) -> Vec<u8> {
        let config = json!({ "mediaType": CONFIG, "digest": digest('c'), "size": 2 });
        let all = json!({ "schemaVersion": 2, "mediaType": MANIFESTS[0], "config": config, "layers": layers });
        all.to_string().into_bytes()
    }

    fn digest(letter: char) -> String {
        format!("sha256:{}", String::from(letter).repeat(64))
    }

    #[test]
    fn the_component_is_the_layer_of_that_type() {
        let other = json!({ "mediaType": "text/plain", "digest": digest('b'), "size": 1 });
        for kind in [LAYER, "application/vnd.wasm.content.layer.v1+wasm"] {
            let layer = json!({ "mediaType": kind, "digest": digest('a'), "size": 7 });
            let found = Layer::of(&manifest(&json!([other, layer])), "x").unwrap();
            assert_eq!(found, Layer { digest: digest('a'), bytes: 7 });
        }
        let layer = |digest: String, size: i64| json!({ "mediaType": LAYER, "digest": digest, "size": size });
        for (bad, why) in [
            (manifest(&json!([])), "needs one layer"),
            (manifest(&json!([other])), "has [text/plain]"),
            (manifest(&json!([layer(digest('a'), 1), layer(digest('b'), 1)])), "needs one layer"),
            (manifest(&json!([layer("md5:a".into(), 1)])), "no digest of SHA-256"),
            (manifest(&json!([layer(digest('a'), -1)])), "-1 bytes"),
            (manifest(&json!([layer(digest('a'), i64::MAX)])), "more than"),
            (b"{".to_vec(), "its manifest"),
            (json!({ "schemaVersion": 2, "manifests": [] }).to_string().into_bytes(), "an index of several"),
        ] {
            let error = Layer::of(&bad, "x").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
