//! Generates the gRPC service of the recipe `grpc`, as a `.proto` file would, but without `protoc`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let sign_up = Method::builder()
        .name("sign_up")
        .route_name("SignUp")
        .input_type("super::SignUpRequest")
        .output_type("super::SignUpReply")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let accounts = Service::builder().name("Accounts").package("recipes").method(sign_up).build();
    Builder::new().compile(&[accounts]);
}
