// The seam between the app and what computes: an engine opens a bundle as a model that remembers.
import Foundation

/// What an engine is told. `context`: positions that the decoder may hold; 0: the model's.
public struct Settings: Sendable {
    public var threads: Int
    public var context: Int

    public init(threads: Int, context: Int = 0) { (self.threads, self.context) = (threads, context) }
}

public protocol Engine: Sendable {
    /// For people and results: `onnxruntime`, or `coreml` with its compute units.
    var name: String { get }

    /// Formats of parts that it opens.
    var formats: Set<String> { get }

    /// Bytes that the bundle will take while it runs, as the settings say.
    func predicted(_ bundle: ModelBundle, _ settings: Settings) -> Int

    /// What takes long, and is done once for a bundle. The files must have been checked. Throws EdgeError.
    func prepare(_ bundle: ModelBundle) async throws

    /// Throws EdgeError.
    func open(_ bundle: ModelBundle, _ settings: Settings) throws -> any Model
}

/// An opened bundle; one caller at a time. After any error it holds what it held before.
public protocol Model: AnyObject {
    var context: Int { get }

    /// How many positions it holds.
    var position: Int { get }

    /// Pixels float32 `[1, 3, size, size]` into rows `[N, hidden]`. The encoder opens when it is needed.
    func see(_ pixels: [Float], _ stop: Stop) throws -> [Float]

    /// Appends float32 rows `[S, hidden]`; the logits `[vocab]` of the last position. Throws EdgeError.
    func extend(_ rows: [Float], _ stop: Stop) throws -> [Float]

    /// Token ids as rows, appended. Throws EdgeError on an id outside the vocabulary.
    func gather(_ ids: [Int], into rows: inout [Float]) throws

    /// Drops what stands from `position` on.
    func rewind(_ position: Int) throws

    /// Lets the vision encoder's memory go until an image comes.
    func freeVision()
}

extension Model {
    /// Appends segments; the logits `[vocab]` of the last position. Throws EdgeError.
    func extend(_ segments: [Segment], _ stop: Stop) throws -> [Float] {
        let count = segments.reduce(0) { $0 + $1.count }
        if count == 0 { throw EdgeError.engine("a decoder was extended by nothing") }
        if position + count > context { throw EdgeError.context(needed: position + count, held: context) }
        var rows: [Float] = []
        for segment in segments {
            switch segment {
            case .tokens(let ids): try gather(ids, into: &rows)
            case .rows(let image): rows.append(contentsOf: image.values)
            }
        }
        return try extend(rows, stop)
    }
}

extension Engine {
    public func prepare(_ bundle: ModelBundle) async throws {}

    /// Throws EdgeError where a part is not for this engine.
    func require(_ manifest: Manifest) throws {
        if let part = manifest.parts.first(where: { !formats.contains($0.format) }) {
            throw EdgeError.engine(
                "the bundle's \(part.covers.joined(separator: "+")) is \(part.format), and \(name) opens "
                    + formats.sorted().joined(separator: ", "),
                hint: "another engine, or export it again: edge export CHECKPOINT --recipe balanced")
        }
    }

    /// Throws EdgeError where a part is not for this engine, or the memory that is free will not do.
    func require(_ bundle: ModelBundle, _ settings: Settings, free: Int?) throws {
        try require(bundle.manifest)
        let needed = predicted(bundle, settings)
        if let free, needed > free {
            throw EdgeError.engine(
                "\(bundle.manifest.name) needs some \(needed >> 20) MB, and \(free >> 20) MB are free",
                hint: "close other apps, or a smaller model")
        }
    }
}
