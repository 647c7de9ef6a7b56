// What an exported ONNX file says of itself: JSON under the key `efficientdet` (inference/engines/metadata.py).

const METADATA_PROPS = 14; // its number in ONNX's ModelProto

/** The fields of a protobuf message, as [number, value]; a value is a number, or bytes. */
function* fields(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (!(byte >= 128)) return value;
    }
  };
  while (at < bytes.length) {
    const tag = number();
    const kind = tag % 8;
    if (kind === 0) yield [Math.floor(tag / 8), number()];
    else if (kind === 2) {
      const length = number();
      yield [Math.floor(tag / 8), bytes.subarray(at, (at += length))];
    } else if (kind === 1 || kind === 5) at += kind === 1 ? 8 : 4;
    else return; // no protobuf
  }
}

/** The metadata of an ONNX file, given as bytes; null where it has none of ours, or damaged ones. */
export function readMetadata(bytes) {
  const decoder = new TextDecoder();
  for (const [field, value] of fields(bytes)) {
    if (field !== METADATA_PROPS) continue;
    const entry = new Map(fields(value));
    if (decoder.decode(entry.get(1)) !== "efficientdet") continue;
    try {
      return JSON.parse(decoder.decode(entry.get(2)));
    } catch {
      return null;
    }
  }
  return null;
}
