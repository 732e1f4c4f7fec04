// Decoder for ONNX graphs with `past_key_values` inputs, which write new positions into the cache that they read.
import COrt

final class KvDecoder {
    let context: Int
    private(set) var position = 0
    private let graph: OrtGraph
    private let spec: DecoderSpec
    private let past: [(name: String, tensor: OrtTensor)]
    private let present: [(name: String, tensor: OrtTensor)]
    private let wantsPositions: Bool

    private static let widths = [
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT.rawValue: 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16.rawValue: 2,
    ]

    /// `asked`: positions that it may hold; 0: the model's. Throws EdgeError.
    init(_ graph: OrtGraph, _ spec: DecoderSpec, asked: Int) throws {
        (self.graph, self.spec) = (graph, spec)
        wantsPositions = graph.inputs.contains { $0.name == "position_ids" }
        try KvDecoder.requireNames(graph, spec)
        let caches = graph.inputs.filter { $0.name.hasPrefix("past_key_values.") }
        for (name, slot) in caches { try KvDecoder.require(graph, spec, name, slot) }
        let lengths = Set(caches.map(\.slot.shape[2]))
        guard let length = lengths.first, lengths.count == 1 else {
            throw EdgeError.engine("the decoder's caches differ in length from layer to layer")
        }
        let wanted = asked > 0 ? min(asked, spec.context) : spec.context
        context = length > 0 ? min(wanted, length) : wanted
        let held = length > 0 ? length : context
        let ort = try Ort.shared()
        past = try caches.map { name, slot in
            let width = KvDecoder.widths[slot.type.rawValue] ?? 4
            return (
                name, try OrtTensor(ort, type: slot.type, width: width, shape: [1, spec.kvHeads, held, spec.headDim])
            )
        }
        present = past.map { (KvDecoder.written($0.name), $0.tensor) }
    }

    /// Appends rows `[S, hidden]`; the logits of the last. Throws EdgeError.
    func extend(_ rows: [Float], _ stop: Stop) throws -> [Float] {
        let count = rows.count / spec.hidden
        if count == 0 || rows.count != count * spec.hidden {
            throw EdgeError.engine("\(rows.count) numbers are no rows of \(spec.hidden)")
        }
        let total = position + count
        if total > context { throw EdgeError.context(needed: total, held: context) }
        let ort = try Ort.shared()
        var feeds = past
        feeds.append(("inputs_embeds", try OrtTensor(ort, floats: rows, shape: [1, count, spec.hidden])))
        let ones = [Int64](repeating: 1, count: total)
        feeds.append(("attention_mask", try OrtTensor(ort, whole: ones, shape: [1, total])))
        if wantsPositions {
            let places = (position..<total).map(Int64.init)
            feeds.append(("position_ids", try OrtTensor(ort, whole: places, shape: [1, count])))
        }
        let logits = try graph.run(feeds, into: present, wanted: "logits", stop: stop)
        if logits.count < spec.vocab || logits.count % spec.vocab != 0 {
            throw EdgeError.engine("the decoder gave \(logits.count) logits, not \(spec.vocab)")
        }
        position = total
        return Array(logits.suffix(spec.vocab))  // of all positions, or of the last one only
    }

    func rewind(_ to: Int) throws {
        if !(0...position).contains(to) { throw EdgeError.engine("cannot rewind to \(to) from \(position)") }
        position = to  // what lies behind it is masked, and written over
    }

    private static func written(_ name: String) -> String { "present." + name.dropFirst("past_key_values.".count) }

    private static func requireNames(_ graph: OrtGraph, _ spec: DecoderSpec) throws {
        let kinds = (0..<spec.layers).flatMap { ["\($0).key", "\($0).value"] }
        let inputs = Set(kinds.map { "past_key_values.\($0)" } + ["inputs_embeds", "attention_mask"])
        let outputs = Set(kinds.map { "present.\($0)" } + ["logits"])
        let odd =
            inputs.symmetricDifference(graph.inputs.map(\.name)).subtracting(["position_ids"]).sorted()
            + outputs.symmetricDifference(graph.outputs.map(\.name)).sorted()
        if !odd.isEmpty {
            let names = odd.prefix(6).joined(separator: ", ")
            throw EdgeError.engine("not a decoder of \(spec.layers) layers: \(names)", hint: EdgeError.again)
        }
    }

    /// Past and present must name one length: the graph then writes into what it reads.
    private static func require(_ graph: OrtGraph, _ spec: DecoderSpec, _ name: String, _ slot: OrtSlot) throws {
        let shape = slot.shape
        let known = widths[slot.type.rawValue] != nil && shape.count == 4
        guard known, shape[1] == spec.kvHeads, shape[3] == spec.headDim else {
            throw EdgeError.engine("\(name) is \(shape), not [1, \(spec.kvHeads), length, \(spec.headDim)]")
        }
        let made = graph.outputs.first { $0.name == written(name) }?.slot
        guard let made, made.type == slot.type, made.shape == shape, made.axes[2] == slot.axes[2] else {
            throw EdgeError.engine("the decoder gives longer copies of its caches", hint: "export the bundle again")
        }
    }
}
