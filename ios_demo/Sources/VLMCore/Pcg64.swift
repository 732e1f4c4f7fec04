// NumPy's random numbers: PCG XSL RR 128/64 (O'Neill, 2014), begun by a seed as NumPy's SeedSequence spreads it.

/// `numpy.random.default_rng(seed)`, of which this project takes `random()` alone.
struct Pcg64 {
    private typealias Wide = (high: UInt64, low: UInt64)
    private static let multiplier: Wide = (0x2360_ED05_1FC6_5DA4, 0x4385_DF64_9FCC_F645)
    private var state: Wide = (0, 0)
    private let step: Wide

    init(seed: UInt64) {
        let words = Pcg64.spread(seed)
        step = (words[2] << 1 | words[3] >> 63, words[3] << 1 | 1)
        advance()
        state = Pcg64.sum(state, (words[0], words[1]))
        advance()
    }

    /// From 0 to 1, of 53 bits.
    mutating func next() -> Double {
        advance()
        let (mixed, turn) = (state.high ^ state.low, state.high >> 58)
        let turned = mixed >> turn | mixed << (64 - turn & 63)
        return Double(turned >> 11) / 9_007_199_254_740_992
    }

    private mutating func advance() {
        let (upper, low) = state.low.multipliedFullWidth(by: Pcg64.multiplier.low)
        let high = upper &+ state.high &* Pcg64.multiplier.low &+ state.low &* Pcg64.multiplier.high
        state = Pcg64.sum((high, low), step)
    }

    private static func sum(_ a: Wide, _ b: Wide) -> Wide {
        let (low, carried) = a.low.addingReportingOverflow(b.low)
        return (a.high &+ b.high &+ (carried ? 1 : 0), low)
    }

    /// Four words of 64 bits, each bit of which depends on each of the seed.
    private static func spread(_ seed: UInt64) -> [UInt64] {
        var first = Hash(constant: 0x43B0_D7E5, multiplier: 0x931E_8875)
        var pool = [UInt32(truncatingIfNeeded: seed), UInt32(seed >> 32), 0, 0].map { first.of($0) }
        for from in pool.indices {
            for to in pool.indices where from != to {
                let mixed = 0xCA01_F9DD &* pool[to] &- 0x4973_F715 &* first.of(pool[from])
                pool[to] = mixed ^ mixed >> 16
            }
        }
        var second = Hash(constant: 0x8B51_F9DD, multiplier: 0x58F3_8DED)
        let words = (0..<8).map { UInt64(second.of(pool[$0 % 4])) }
        return (0..<4).map { words[2 * $0] | words[2 * $0 + 1] << 32 }
    }

    private struct Hash {
        var constant: UInt32
        let multiplier: UInt32

        mutating func of(_ value: UInt32) -> UInt32 {
            let first = value ^ constant
            constant = constant &* multiplier
            let second = first &* constant
            return second ^ second >> 16
        }
    }
}
