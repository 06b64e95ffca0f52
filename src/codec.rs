//! How messages are read and written: as tonic does by itself, but for a look at them before, and for the size of the buffers.
//!
//! A message is small on its way and large once it is read: 16 MB of empty entries would be some gigabytes. So its parts are counted
//! first, which needs no memory.
//!
//! Tonic's own buffers are 8 KiB, two for each call, which is more than all else that a call allocates. These are as large as most
//! messages of ours are, and a larger message makes its buffer grow.

use std::{io, marker::PhantomData};

use prost::{
    Message,
    bytes::Buf as _,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstCodec;

/// The most fields that a message has, those of its parts not counted. A sync of ten thousand servers fits.
pub const MAX_FIELDS: usize = 20_000;

/// How large a buffer is at first.
const BUFFER: usize = 1 << 10;
/// How much of a stream is put together before it is handed on: tonic's default.
const YIELD: usize = 32 << 10;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER, YIELD)
}

/// Reads messages of up to [`MAX_FIELDS`] fields, and writes any.
#[derive(Debug, Clone, Copy)]
pub struct BoundedCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for BoundedCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for BoundedCodec<E, D>
where
    E: Message + Send + 'static,
    D: Message + Default + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = <ProstCodec<E, D> as Codec>::Encoder;
    type Decoder = BoundedDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<E, D>::raw_encoder(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// See [`BoundedCodec`].
#[derive(Debug)]
pub struct BoundedDecoder<D>(PhantomData<D>);

impl<D: Message + Default> Decoder for BoundedDecoder<D> {
    type Item = D;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        // The edge gives these their reason.
        let refuse = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
        if !has_few_fields(&bytes) {
            return Err(refuse(format!("the message has more than {MAX_FIELDS} fields")).into());
        }
        let message = D::decode(bytes).map_err(|error| refuse(error.to_string()))?;
        Ok(Some(message))
    }
}

/// Whether a message has no more fields than it may. Of one that is malformed the decoder tells.
fn has_few_fields(mut bytes: &[u8]) -> bool {
    for _ in 0..MAX_FIELDS {
        if bytes.is_empty() {
            return true;
        }
        let skipped = decode_key(&mut bytes)
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut bytes, DecodeContext::default()));
        if skipped.is_err() {
            return true;
        }
    }
    bytes.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_and_what_is_in_them_is_not() {
        // A field that is an empty message.
        let empty = [0x0a, 0x00];
        assert!(has_few_fields(&[]));
        assert!(has_few_fields(&empty.repeat(MAX_FIELDS)));
        assert!(!has_few_fields(&empty.repeat(MAX_FIELDS + 1)));
        let mut long = vec![0x0a, 0x80, 0x80, 0x04];
        long.extend(vec![0x0a; 0x1_0000]);
        assert!(has_few_fields(&long));
        // Malformed: cut off, and of a type that there is not.
        assert!(has_few_fields(&[0x0a, 0x05, 0x00]));
        assert!(has_few_fields(&[0x0f]));
    }
}
