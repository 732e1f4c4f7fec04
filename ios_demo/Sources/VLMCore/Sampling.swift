// Sampling: picks a token id from logits. Greedy picks are Python's; a seed repeats picks here, but not Python's.
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
    private var state: UInt64

    init(_ sampling: Sampling) {
        self.sampling = sampling
        state = sampling.seed ?? UInt64.random(in: 0 ... .max)
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
        var ids = scores.indices.sorted { (scores[$1], $0) < (scores[$0], $1) }  // of equal scores the lower ids first
        if sampling.topK > 0 { ids = Array(ids.prefix(sampling.topK)) }
        let weights = ids.map { exp(Double(scores[$0] - scores[best]) / sampling.temperature) }
        let kept = nucleus(weights)
        var left = chance() * weights[..<kept].reduce(0, +)
        for place in 0..<kept {
            left -= weights[place]
            if left < 0 { return ids[place] }
        }
        return ids[kept - 1]
    }

    private func penalised(_ logits: [Float], _ history: [Int]) -> [Float] {
        if sampling.repeatPenalty == 1 { return logits }
        var scores = logits
        for id in Set(history) where scores.indices.contains(id) {
            let score = Double(scores[id])
            scores[id] = Float(score > 0 ? score / sampling.repeatPenalty : score * sampling.repeatPenalty)
        }
        return scores
    }

    /// How many of the weights, which descend, reach topP together.
    private func nucleus(_ weights: [Double]) -> Int {
        let wanted = sampling.topP * weights.reduce(0, +)
        var sum = 0.0
        for (place, weight) in weights.enumerated() {
            sum += weight
            if sum >= wanted { return place + 1 }
        }
        return weights.count
    }

    /// From 0 to 1, by SplitMix64 (Steele, Lea and Flood, 2014).
    private mutating func chance() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return Double((z ^ z >> 31) >> 11) / 9_007_199_254_740_992
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
