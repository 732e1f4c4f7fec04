// Sampling: picks a token id from logits. A seed gives Python's picks, up to the last bit of an exponential.
import Foundation

/// Temperature 0 takes the most probable token; topK 0, topP 1 and repeatPenalty 1 change nothing.
public struct Sampling: Sendable {
    public let temperature: Double
    public let topK: Int
    public let topP: Double
    public let repeatPenalty: Double
    public let seed: UInt64?

    public static let greedy = Sampling()

    private init() { (temperature, topK, topP, repeatPenalty, seed) = (0, 0, 1, 1, nil) }

    /// Throws EdgeError on what is out of range.
    public init(
        temperature: Double = 0,
        topK: Int = 0,
        topP: Double = 1,
        repeatPenalty: Double = 1,
        seed: UInt64? = nil
    ) throws {
        func need(_ name: String, _ value: Any, _ ok: Bool, _ rule: String) throws {
            if !ok { throw EdgeError.usage("\(name) is \(value); it must be \(rule)") }
        }
        try need("temperature", temperature, temperature >= 0 && temperature.isFinite, "0 or more")
        try need("topK", topK, topK >= 0, "0 or more")
        try need("topP", topP, topP > 0 && topP <= 1, "above 0 and at most 1")
        try need("repeatPenalty", repeatPenalty, repeatPenalty > 0 && repeatPenalty.isFinite, "above 0")
        (self.temperature, self.topK, self.topP) = (temperature, topK, topP)
        (self.repeatPenalty, self.seed) = (repeatPenalty, seed)
    }
}

struct Sampler {
    private let sampling: Sampling
    private var random: Pcg64

    init(_ sampling: Sampling) {
        self.sampling = sampling
        random = Pcg64(seed: sampling.seed ?? UInt64.random(in: 0 ... .max))
    }

    /// An id from logits `[vocab]`. Throws EdgeError when a logit is NaN, or none is finite.
    mutating func pick(_ logits: [Float], history: [Int]) throws -> Int {
        let scores = penalised(logits, history)
        let best = argmax(scores)
        if !scores[best].isFinite {
            throw EdgeError.engine(
                "the decoder gave the logit \(scores[best]) for token \(best)", hint: "verify the bundle")
        }
        if sampling.temperature == 0 { return best }
        let top = top(scores)
        // In single precision, as Python's.
        let weights = top.map { id in
            Double(Float(exp(Double(Float(Double(scores[id] - scores[best]) / sampling.temperature)))))
        }
        let kept = nucleus(weights)
        var sum = 0.0
        let mass = kept.map { place -> Double in
            sum += weights[place]
            return sum
        }
        let wanted = random.next() * sum
        return top[kept[mass.firstIndex { $0 > wanted } ?? kept.count - 1]]
    }

    private func penalised(_ logits: [Float], _ history: [Int]) -> [Float] {
        if sampling.repeatPenalty == 1 { return logits }
        var scores = logits
        let penalty = Float(sampling.repeatPenalty)
        for id in Set(history) where scores.indices.contains(id) {
            scores[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty
        }
        return scores
    }

    /// The ids of the topK best scores, the lower ids of equal ones; or all, in their order.
    private func top(_ scores: [Float]) -> [Int] {
        if sampling.topK == 0 || sampling.topK >= scores.count { return Array(scores.indices) }
        return Array(scores.indices.sorted { (scores[$1], $0) < (scores[$0], $1) }.prefix(sampling.topK))
    }

    /// Places of the fewest ids whose mass reaches topP.
    private func nucleus(_ weights: [Double]) -> [Int] {
        if sampling.topP == 1 { return Array(weights.indices) }
        let sorted = weights.indices.sorted { (weights[$1], $0) < (weights[$0], $1) }
        let wanted = sampling.topP * weights.reduce(0, +)
        var sum = 0.0
        for (count, place) in sorted.enumerated() {
            sum += weights[place]
            if sum >= wanted { return Array(sorted[...count]) }
        }
        return sorted
    }
}

/// The first of the largest; the first NaN, if there is one.
func argmax(_ values: [Float]) -> Int {
    var best = 0
    for i in values.indices {
        if values[i].isNaN { return i }
        if values[i] > values[best] { best = i }
    }
    return best
}
