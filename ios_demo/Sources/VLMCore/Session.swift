// Session: an opened bundle that answers questions about images, and remembers what it has computed.
import Foundation

/// In milliseconds. `prefill`: what of the prompt was not cached; `firstToken`: from the call on.
public struct Timings: Sendable {
    public let image: Double
    public let vision: Double
    public let prefill: Double
    public let firstToken: Double
    public let decode: Double
    public let tokensPerSecond: Double
}

/// `stopReason`: `stop`, `length` or `context`.
public struct Answer: Sendable {
    public let text: String
    public let ids: [Int]
    public let stopReason: String
    public let promptTokens: Int
    public let cachedTokens: Int
    public let timings: Timings
}

/// What is asked for beside the question. `started`: when the call came.
public struct Ask: Sendable {
    public var maxTokens: Int
    public var sampling: Sampling
    public var started: DispatchTime

    public init(maxTokens: Int = 256, sampling: Sampling = .greedy, started: DispatchTime = .now()) {
        (self.maxTokens, self.sampling, self.started) = (maxTokens, sampling, started)
    }
}

/// What the images of a question took, in milliseconds; nothing for images that were seen before.
final class ImageTimes {
    var pixels = 0.0
    var vision = 0.0
}

/// One caller at a time. After an error, or an answer that was stopped, it goes on.
final class Session {
    let bundle: ModelBundle
    let model: any Model
    let tokenizer: Tokenizer
    private var held: [Held] = []
    private var images: [ImageRows] = []  // the last one used comes last
    private let remembered: Int  // views: a follow-up question asks for all of an image's

    /// A position of the decoder: a token, or a row of an image.
    private enum Held: Equatable {
        case token(Int)
        case row(String, Int)
    }

    /// The files must have been checked, and the engine have prepared them. Throws EdgeError.
    init(_ bundle: ModelBundle, _ engine: any Engine, _ settings: Settings) throws {
        self.bundle = bundle
        remembered = max(32, bundle.manifest.mostViews)
        tokenizer = try Tokenizer(readable(bundle.file(bundle.manifest.tokenizer)))
        model = try engine.open(bundle, settings)
    }

    /// An image's views, as the bundle divides it.
    func views(_ picture: Picture) -> Views { Views(picture, bundle.manifest.image, most: bundle.manifest.mostViews) }

    /// What the decoder sees of an image. Throws EdgeError.
    func encode(_ picture: Picture, stop: Stop = Stop(), times: ImageTimes = ImageTimes()) throws -> Seen {
        let before = DispatchTime.now()
        let views = views(picture)
        times.pixels += milliseconds(since: before)
        let rows = try views.pixels.map { try encode($0, stop: stop, times: times) }
        return Seen(views: rows, rows: views.rows, columns: views.columns)
    }

    /// Of one view, from pixels `[1, 3, size, size]`.
    func encode(_ values: [Float], stop: Stop = Stop(), times: ImageTimes = ImageTimes()) throws -> ImageRows {
        let before = DispatchTime.now()
        defer { times.vision += milliseconds(since: before) }
        let key = digest(values)
        if let place = images.firstIndex(where: { $0.key == key }) {
            images.append(images.remove(at: place))
            return images[images.count - 1]
        }
        let count = bundle.manifest.prompt.imageTokens
        let rows = ImageRows(values: try model.see(values, stop), key: key, count: count)
        images = images.suffix(remembered - 1) + [rows]
        return rows
    }

    /// The answer to the last of the turns; `emit` is given its pieces as they are made. Throws EdgeError; of a prompt
    /// that the context does not hold before anything is computed.
    func answer(
        _ turns: [Turn],
        ask: Ask = Ask(),
        stop: Stop = Stop(),
        times: ImageTimes = ImageTimes(),
        emit: (String) -> Void
    ) throws -> Answer {
        let question = turns.last?.question ?? ""
        if question.allSatisfy(\.isWhitespace) { throw EdgeError.usage("the question is empty", hint: "ask something") }
        if ask.maxTokens < 1 { throw EdgeError.usage("maxTokens is \(ask.maxTokens)") }
        let whole = try segments(bundle.manifest.prompt, tokenizer, turns)
        let begun = DispatchTime.now()
        let (logits, cached) = try prefill(whole, stop)
        var run = Generation(ask: ask, spec: bundle.manifest.prompt, stream: tokenizer.stream(), stop: stop)
        run.prefill = milliseconds(since: begun)
        let prompt = whole.compactMap(\.ids).flatMap { $0 }
        try run.go(logits, history: prompt, full: { held.count >= model.context }, step: append, emit: emit)
        return run.answer(prompted: whole.reduce(0) { $0 + $1.count }, cached: cached, images: times)
    }

    /// The prompt's logits, after what of it is held already; and how much that was.
    private func prefill(_ segments: [Segment], _ stop: Stop) throws -> (logits: [Float], cached: Int) {
        let wanted = segments.flatMap { segment -> [Held] in
            switch segment {
            case .tokens(let ids): ids.map(Held.token)
            case .rows(let rows): (0..<rows.count).map { Held.row(rows.key, $0) }
            }
        }
        if wanted.count > model.context { throw EdgeError.context(needed: wanted.count, held: model.context) }
        let alike = zip(held, wanted).prefix { $0 == $1 }.count
        // The last position is computed anew in any case: its logits are what is asked for.
        let same = min(alike, wanted.count - 1, model.position)
        held.removeSubrange(same...)
        try model.rewind(same)
        let logits = try model.extend(after(segments, same), stop)
        held += wanted[same...]
        return (logits, same)
    }

    private func append(_ id: Int, _ stop: Stop) throws -> [Float] {
        let logits = try model.extend([.tokens([id])], stop)
        held.append(.token(id))
        return logits
    }

    /// Nothing of before is used again: the next answer is computed whole.
    func forget() {
        images = []
        held = []
    }

    /// Lets go what can be computed again; the encoder opens anew with the next image.
    func trim() {
        model.freeVision()
        images = []
    }

    /// The segments without their first `count` positions.
    private func after(_ segments: [Segment], _ count: Int) -> [Segment] {
        var left = count
        return segments.compactMap { segment in
            let skipped = min(left, segment.count)
            left -= skipped
            if skipped == segment.count { return nil }
            if skipped == 0 { return segment }
            switch segment {
            case .tokens(let ids): return .tokens(Array(ids.dropFirst(skipped)))
            case .rows(let rows):
                let width = rows.values.count / rows.count
                let rest = Array(rows.values.dropFirst(skipped * width))
                return .rows(ImageRows(values: rest, key: "\(rows.key)[\(skipped):]", count: rows.count - skipped))
            }
        }
    }
}

func milliseconds(since start: DispatchTime) -> Double {
    Double(DispatchTime.now().uptimeNanoseconds - start.uptimeNanoseconds) / 1e6
}
