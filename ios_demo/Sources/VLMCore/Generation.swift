// Generation: token after token, until the answer ends.
import Foundation

struct Generation {
    private let ask: Ask
    private let spec: PromptSpec
    private let stop: Stop
    private var stream: TextStream
    private var filter: StopFilter
    private var sampler: Sampler
    private var text = ""
    private var ids: [Int] = []
    private var reason = "stop"
    private var steps = 0
    private var first = 0.0
    private var spent = 0.0
    var prefill = 0.0

    init(ask: Ask, spec: PromptSpec, stream: TextStream, stop: Stop) {
        (self.ask, self.spec, self.stream, self.stop) = (ask, spec, stream, stop)
        filter = StopFilter(spec.stopStrings)
        sampler = Sampler(ask.sampling)
    }

    /// From the prompt's logits on. `full`: whether the context is; `step`: the logits after one more token.
    mutating func go(
        _ logits: [Float],
        history prompt: [Int],
        full: () -> Bool,
        step: (Int, Stop) throws -> [Float],
        emit: (String) -> Void
    ) throws {
        var history = prompt
        var id = try sampler.pick(logits, history: history)
        first = milliseconds(since: ask.started)
        while !spec.stopIds.contains(id) {
            ids.append(id)
            history.append(id)
            try say(filter.push(stream.push(id)), emit)
            if filter.stopped { break }
            if ids.count == ask.maxTokens { reason = "length" } else if full() { reason = "context" }
            if reason != "stop" { break }
            let before = DispatchTime.now()
            id = try sampler.pick(try step(id, stop), history: history)
            spent += milliseconds(since: before)
            steps += 1
        }
        try say(filter.push(stream.finish()) + filter.finish(), emit)
    }

    func answer(prompted: Int, cached: Int, images: ImageTimes) -> Answer {
        let timings = Timings(
            image: images.pixels, vision: images.vision, prefill: prefill, firstToken: first, decode: spent,
            tokensPerSecond: spent > 0 ? 1000 * Double(steps) / spent : 0)
        return Answer(
            text: text, ids: ids, stopReason: reason, promptTokens: prompted, cachedTokens: cached, timings: timings)
    }

    private mutating func say(_ piece: String, _ emit: (String) -> Void) throws {
        try stop.check()
        if piece.isEmpty { return }
        text += piece
        emit(piece)
    }
}
