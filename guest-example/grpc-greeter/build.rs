//! Generates the service from its `.proto` file.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .compile_protos(&["proto/greeter.proto"], &["proto"])?;
    Ok(())
}
