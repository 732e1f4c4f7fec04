// Bytes changed at random, again and again, and what a reader makes of them.
import Foundation
import XCTest

@testable import VLMCore

struct Damage {
    private var state: UInt64 = 1

    private mutating func chance(_ below: Int) -> Int {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Int(state >> 33) % below
    }

    /// Some bytes of the first `within` are others, or the end is cut off.
    private mutating func damaged(_ data: Data, within: Int) -> Data {
        var made = data
        for _ in 0...chance(3) {
            let digits = Array("0123456789-,:[]{}\"\\e".utf8)
            made[chance(min(within, made.count))] = chance(2) == 0 ? digits[chance(digits.count)] : UInt8(chance(256))
        }
        return chance(8) == 0 ? Data(made.prefix(chance(made.count))) : made
    }

    mutating func each(_ data: Data, within: Int, times: Int, _ read: (Data) throws -> Void) {
        var refused = 0
        for _ in 0..<times {
            do {
                try read(damaged(data, within: within))
            } catch is EdgeError {
                refused += 1
            } catch {
                XCTFail("\(error) was thrown")
            }
        }
        XCTAssertGreaterThan(refused, times / 10)
    }
}
