// Files with bytes changed at random: each is read as something, or refused with a sentence; none ends the app.
import Foundation
import XCTest

@testable import VLMCore

final class DamageTests: XCTestCase {
    private var damage = Damage()

    func testAManifest() throws {
        for folder in [place("BUNDLE"), place("DATA").appendingPathComponent("schema1")] {
            let data = try readable(folder.appendingPathComponent("manifest.json"))
            damage.each(data, within: data.count, times: 500) { _ = try Manifest($0) }
        }
    }

    func testATokenizer() throws {
        let data = try readable(place("DATA").appendingPathComponent("tokenizer.json"))
        for within in [1500, data.count] {
            damage.each(data, within: within, times: 150) {
                let tokenizer = try Tokenizer($0)
                _ = tokenizer.decode(tokenizer.encode("What is in the picture? \u{1F642}"))
            }
        }
    }

    func testAGoldenSample() throws {
        let bundle = try ModelBundle(place("BUNDLE"))
        let data = try readable(bundle.file(bundle.manifest.golden))
        damage.each(data, within: 900, times: 200) { _ = try Safetensors.read("golden", $0) }
        let zip = try readable(place("DATA").appendingPathComponent("schema1/golden.npz"))
        damage.each(Data(zip.reversed()), within: 1200, times: 300) { _ = try Npz.read("golden", Data($0.reversed())) }
        damage.each(zip, within: 300, times: 100) { _ = try Npz.read("golden", $0) }
    }

    func testAnEmbeddingTable() throws {
        let data = try readable(place("BUNDLE").appendingPathComponent("embed_tokens.npy"))
        damage.each(data, within: 128, times: 300) { _ = try Npy.read("embed_tokens.npy", $0) }
    }
}
