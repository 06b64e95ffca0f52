//! Below the messages: bytes, methods and services that are none.

use tonic::{
    Code, Request, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::support::{
    Client,
    malformed::{stocked, tells_no_more_than_it_should},
    requests::request,
    violations,
};

/// Sends bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(target, &item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = prost::bytes::Buf::remaining(source);
        Ok(Some(prost::bytes::Buf::copy_to_bytes(source, length).to_vec()))
    }
}

async fn send(client: &Client, path: &'static str, bytes: &[u8]) -> Status {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(Request::new(bytes.to_vec()), path, Raw).await.map(drop).unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_no_method_or_no_service_is_refused_and_the_next_call_answered() {
    const ENSURE: &str = "/resourceallocator.v1.ResourceAllocator/EnsureAllocation";
    let mut service = stocked().await;
    let before = service.database.tables().await;
    let oversized = request(&"x".repeat(17 << 20));
    let oversized = service.client.place(oversized).await.unwrap_err();
    assert_eq!(oversized.code(), Code::OutOfRange, "{oversized:?}");
    let no_method = send(&service.client, "/resourceallocator.v1.ResourceAllocator/Nothing", b"").await;
    assert_eq!(no_method.code(), Code::Unimplemented);
    let no_service = send(&service.client, "/resourceallocator.v1.Nothing/EnsureAllocation", b"").await;
    assert_eq!(no_service.code(), Code::Unimplemented);
    let mut statuses = vec![oversized, no_method, no_service];
    // A field cut off, a wire type that is none, a length past the end, a string that is not UTF-8, a group that never ends.
    for garbage in [
        &b"\x0a"[..],
        b"\x0f",
        b"\x0a\xff\x01",
        b"\x0a\x02\xc3\x28",
        b"\x0b",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        statuses.push(send(&service.client, ENSURE, garbage).await);
    }
    for status in &statuses {
        assert!(!matches!(status.code(), Code::Ok | Code::Unknown | Code::Unavailable), "{status:?}");
        tells_no_more_than_it_should(status);
    }
    // No bytes are a message of defaults.
    let empty = send(&service.client, ENSURE, b"").await;
    assert_eq!(violations(&empty), ["project_id"]);
    // A field that this release does not know is passed over, as protobuf has it.
    let unknown = send(&service.client, ENSURE, b"\xf8\x07\x01").await;
    assert_eq!(violations(&unknown), ["project_id"]);
    assert_eq!(service.database.tables().await, before);
    service.client.ensure("first", &["api"]).await.unwrap();
}
