// Files with bytes changed at random: each is read as something, or refused with a sentence; none ends the app.
import Foundation
import XCTest

@testable import VLMCore

final class DamageTests: XCTestCase {
    private var state: UInt64 = 1

    private func chance(_ below: Int) -> Int {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Int(state >> 33) % below
    }

    /// Some bytes of the first `within` are others, or the end is cut off.
    private func damaged(_ data: Data, within: Int) -> Data {
        var made = data
        for _ in 0...chance(3) {
            let digits = Array("0123456789-,:[]{}\"\\e".utf8)
            made[chance(min(within, made.count))] = chance(2) == 0 ? digits[chance(digits.count)] : UInt8(chance(256))
        }
        return chance(8) == 0 ? Data(made.prefix(chance(made.count))) : made
    }

    private func eachDamage(_ data: Data, within: Int, times: Int, _ read: (Data) throws -> Void) {
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

    func testAManifest() throws {
        for folder in [place("BUNDLE"), place("DATA").appendingPathComponent("schema1")] {
            let data = try readable(folder.appendingPathComponent("manifest.json"))
            eachDamage(data, within: data.count, times: 500) { _ = try Manifest($0) }
        }
    }

    func testATokenizer() throws {
        let data = try readable(place("DATA").appendingPathComponent("tokenizer.json"))
        for within in [1500, data.count] {
            eachDamage(data, within: within, times: 150) {
                let tokenizer = try Tokenizer($0)
                _ = tokenizer.decode(tokenizer.encode("What is in the picture? \u{1F642}"))
            }
        }
    }

    func testAGoldenSample() throws {
        let bundle = try ModelBundle(place("BUNDLE"))
        let data = try readable(bundle.file(bundle.manifest.golden))
        eachDamage(data, within: 900, times: 200) { _ = try Safetensors.read("golden", $0) }
        let zip = try readable(place("DATA").appendingPathComponent("schema1/golden.npz"))
        eachDamage(Data(zip.reversed()), within: 1200, times: 300) { _ = try Npz.read("golden", Data($0.reversed())) }
        eachDamage(zip, within: 300, times: 100) { _ = try Npz.read("golden", $0) }
    }

    func testAnEmbeddingTable() throws {
        let data = try readable(place("BUNDLE").appendingPathComponent("embed_tokens.npy"))
        eachDamage(data, within: 128, times: 300) { _ = try Npy.read("embed_tokens.npy", $0) }
    }
}
