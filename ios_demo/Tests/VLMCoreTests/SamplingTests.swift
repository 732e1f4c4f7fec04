// A seed repeats its picks, and the rules of sampling hold.
import XCTest

@testable import VLMCore

final class SamplingTests: XCTestCase {
    private let logits = (0..<50).map { Float($0 * 37 % 11) }

    private func picks(_ sampling: Sampling) throws -> [Int] {
        var sampler = Sampler(sampling)
        return try (0..<40).map { _ in try sampler.pick(logits, history: []) }
    }

    func testGreedyTakesTheFirstOfTheLargest() throws {
        XCTAssertEqual(Set(try picks(.greedy)), [8])  // 8 · 37 mod 11 is 10
    }

    func testASeedGivesPythonsPicks() throws {
        let sampled = try json("GOLDEN", "sampled.json").items("sampled")
        XCTAssertEqual(sampled.count, 6)
        for entry in sampled {
            let seed = UInt64(entry.number("seed"))
            let asked = try Sampling(
                temperature: entry.at("temperature").number ?? 0, topK: entry["top_k"]?.whole ?? 0,
                topP: entry["top_p"]?.number ?? 1, repeatPenalty: entry["repeat_penalty"]?.number ?? 1, seed: seed)
            var x = UInt32(truncatingIfNeeded: seed)
            let logits = (0..<300).map { _ -> Float in
                x = x &* 1_664_525 &+ 1_013_904_223
                return Float(Double(x) / 268_435_456 - 8)
            }
            var sampler = Sampler(asked)
            var picks: [Int] = []
            for _ in 0..<40 { picks.append(try sampler.pick(logits, history: picks)) }
            XCTAssertEqual(picks, entry.at("picks").numbers, entry.written)
        }
    }

    func testASeedRepeatsItsPicks() throws {
        let warm = try Sampling(temperature: 1.5, seed: 3)
        XCTAssertEqual(try picks(warm), try picks(warm))
        XCTAssertGreaterThan(Set(try picks(warm)).count, 3)
    }

    func testTheRulesHold() throws {
        XCTAssertEqual(Set(try picks(Sampling(temperature: 9, topK: 2, seed: 1))), [8, 19])
        XCTAssertEqual(Set(try picks(Sampling(temperature: 9, topP: 1e-6, seed: 1))), [8])
        var penalised = Sampler(try Sampling(repeatPenalty: 2))
        XCTAssertEqual(try penalised.pick([1, 9, 2, 0, 0, 0, 0, 5], history: [1, 1]), 7)
    }

    func testWhatIsBrokenOrOutOfRangeIsNamed() {
        assertThrows(.engine, "nan", "token 1") {
            var sampler = Sampler(.greedy)
            _ = try sampler.pick([0, .nan], history: [])
        }
        assertThrows(.usage, "topP is 0.0") { _ = try Sampling(topP: 0) }
        assertThrows(.usage, "temperature is -1.0") { _ = try Sampling(temperature: -1) }
    }

    func testAHalfIsExact() {
        XCTAssertEqual([0x3C00, 0xC000, 0x0001, 0x7BFF].map { half($0) }, [1, -2, 5.9604645e-08, 65504])
        XCTAssertTrue(half(0x7E00).isNaN && half(0xFC00) == -.infinity)
    }
}
