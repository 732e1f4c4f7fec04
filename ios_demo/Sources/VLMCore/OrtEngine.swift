// Engine for `onnx` parts: ONNX Runtime, on the processor.
import Foundation

public struct OrtEngine: Engine {
    public let name = "onnxruntime"
    public let formats: Set<String> = ["onnx"]

    public init() {}

    /// Of the library.
    public static func version() throws -> String { try Ort.shared().version }

    public func predicted(_ bundle: ModelBundle, _ settings: Settings) -> Int {
        let decoder = bundle.manifest.decoder
        let positions = settings.context > 0 ? min(settings.context, decoder.context) : decoder.context
        let cache = Numbers.bytes([2, decoder.layers, decoder.kvHeads, decoder.headDim, positions], width: 4)
        let weights = bundle.manifest.parts.flatMap(\.files).reduce(0) { $0 + $1.bytes }
        // Weights are put in another order for the processor, those of 4 bits beside the file's own.
        return cache.map { weights / 20 * 27 + $0 } ?? .max
    }

    public func open(_ bundle: ModelBundle, _ settings: Settings) throws -> any Model {
        try OrtModel(bundle, settings)
    }
}

private final class OrtModel: Model {
    private let bundle: ModelBundle
    private let threads: Int
    private let table: EmbeddingTable
    private let decoder: KvDecoder
    private var vision: [OrtGraph] = []

    init(_ bundle: ModelBundle, _ settings: Settings) throws {
        let part = try bundle.manifest.part("decoder")
        let spec = bundle.manifest.decoder
        self.bundle = bundle
        threads = settings.threads
        table = try EmbeddingTable(part.files.map(bundle.file), vocab: spec.vocab, hidden: spec.hidden)
        let graph = try OrtGraph(bundle.file(part.files[0]), part: part, threads: threads)
        decoder = try KvDecoder(graph, spec, asked: settings.context)
    }

    var context: Int { decoder.context }
    var position: Int { decoder.position }

    func see(_ pixels: [Float], _ stop: Stop) throws -> [Float] {
        let size = bundle.manifest.image.size
        if vision.isEmpty {
            vision = try bundle.manifest.parts.filter { !$0.covers.contains("decoder") }
                .map { try OrtGraph(bundle.file($0.files[0]), part: $0, threads: threads) }
        }
        if vision.isEmpty { throw EdgeError.engine("the bundle has no vision part", hint: "ask without a photo") }
        var values = pixels
        var shape = [1, 3, size, size]
        for graph in vision {
            guard let input = graph.inputs.first, let output = graph.outputs.first else {
                throw EdgeError.engine("a vision part has no inputs or outputs", hint: EdgeError.again)
            }
            let tensor = try OrtTensor(Ort.shared(), floats: values, shape: shape)
            values = try graph.run([(input.name, tensor)], wanted: output.name, stop: stop)
            let width = max(output.slot.shape.last ?? 1, 1)
            shape = [1, values.count / width, width]
        }
        let expected = bundle.manifest.prompt.imageTokens * bundle.manifest.decoder.hidden
        if values.count != expected {
            throw EdgeError.engine("the vision part gave \(values.count) numbers, not \(expected)")
        }
        return values
    }

    func gather(_ ids: [Int], into rows: inout [Float]) throws { try table.gather(ids, into: &rows) }

    func extend(_ rows: [Float], _ stop: Stop) throws -> [Float] { try decoder.extend(rows, stop) }

    func rewind(_ position: Int) throws { try decoder.rewind(position) }

    func freeVision() { vision = [] }
}
