// Bundles in zip archives: imported whole, bounded by what their manifest says, and refused where they are damaged.
import Foundation
import XCTest

@testable import VLMCore

final class ZipTests: XCTestCase {
    private let engines: [any Engine] = [FakeEngine()]

    private func zip(_ name: String) -> URL { place("HERE").appendingPathComponent(name) }

    func testAZipIsUnpackedAndChecked() throws {
        for name in ["packed.zip", "wide.zip"] {
            let root = try temporary()
            let made = try Store(root).add("demo", fromZip: zip(name), engines: engines)
            try made.check()
            let found = try FileManager.default.contentsOfDirectory(atPath: made.folder.path)
            XCTAssertEqual(Set(found), Set([manifestName] + made.manifest.files.map(\.path)))
            XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: root.path), ["demo"])
            XCTAssertFalse(FileManager.default.fileExists(atPath: root.appendingPathComponent("../evil").path))
        }
    }

    func testEachKindOfBlockIsInflated() throws {
        let archive = try ZipArchive("small.zip", readable(zip("small.zip")))
        var found: [String: Data] = [:]
        for entry in archive.entries { found[entry.path] = try archive.content(entry, most: 1 << 20) }
        XCTAssertEqual(found["empty"], Data())
        XCTAssertEqual(found["short"], Data("a".utf8))
        XCTAssertEqual(found["again"], Data(String(repeating: "again and ", count: 40_000).utf8))
        let all = (32..<9000).compactMap(Unicode.Scalar.init).map(String.init).joined()
        XCTAssertEqual(found["all"], Data(all.utf8))
        assertThrows(.bundle, "again of 400000 bytes") {
            for entry in archive.entries { _ = try archive.content(entry, most: 399_999) }
        }
    }

    func testAnArchiveThatSaysLessThanItHoldsIsRefused() throws {
        var data = try readable(zip("small.zip"))
        let list = try XCTUnwrap(data.range(of: Data([0x50, 0x4B, 1, 2])))
        for at in 0..<4 {  // of each entry: its size becomes 1
            var place = list.lowerBound
            for _ in 0..<at {
                let lengths = [28, 30, 32].map { Int(data[place + $0]) | Int(data[place + $0 + 1]) << 8 }
                place += 46 + lengths.reduce(0, +)
            }
            data.replaceSubrange(place + 24..<place + 28, with: [1, 0, 0, 0])
        }
        let archive = try ZipArchive("small.zip", data)
        let said = archive.entries.map { entry -> String in
            do {
                return String(decoding: try archive.content(entry, most: 9), as: UTF8.self)
            } catch {
                return (error as? EdgeError)?.message ?? "\(error)"
            }
        }
        XCTAssertTrue(said[0].contains("of empty, it ends early"), said[0])
        XCTAssertEqual(said[1], "a")
        for text in said[2...] { XCTAssertTrue(text.contains("holds more than it says"), text) }
    }

    func testWhatIsNoBundlesZipIsRefused() throws {
        let root = try temporary()
        let store = try Store(root)
        let other = root.appendingPathComponent("../\(UUID().uuidString).zip")
        defer { try? FileManager.default.removeItem(at: other) }
        func refused(_ data: Data, _ words: String, line: UInt = #line) throws {
            try data.write(to: other)
            assertThrows(.bundle, words, line: line) {
                _ = try store.add("demo", fromZip: other, engines: engines)
            }
        }
        try refused(Data(count: 5), "no zip archive")
        try refused(readable(zip("small.zip")), "no manifest.json")
        let whole = try readable(zip("packed.zip"))
        try refused(whole.prefix(whole.count / 2), "no zip archive")
        var flipped = whole
        let weights = try XCTUnwrap(flipped.range(of: Data("decoder.onnx.data".utf8)))
        flipped[weights.upperBound + 99_999] ^= 1
        try refused(flipped, "decoder.onnx.data")
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: root.path), [])
        let coreml = [FakeEngine(name: "coreml", formats: ["coreml"])]
        assertThrows(.engine, "coreml opens coreml") {
            _ = try store.add("demo", fromZip: zip("packed.zip"), engines: coreml)
        }
        let stop = Stop()
        stop.now()
        assertThrows(.stopped) { _ = try store.add("demo", fromZip: zip("packed.zip"), engines: engines, stop: stop) }
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: root.path), [])
    }

    func testDamageIsASentence() throws {
        let small = try readable(zip("small.zip"))
        func read(_ data: Data) throws {
            let archive = try ZipArchive("small.zip", data)
            for entry in archive.entries { _ = try archive.content(entry, most: 1 << 20) }
        }
        var damage = Damage()
        damage.each(small, within: small.count, times: 300, read)
        damage.each(Data(small.reversed()), within: 250, times: 300) { try read(Data($0.reversed())) }
    }
}
