// Bundles that are newer, damaged, cut off, unsafe, for another engine or too large.
import Foundation
import XCTest

@testable import VLMCore

final class BundleTests: XCTestCase {
    func testSchemaTwoAndOneOpenAndAreWhole() throws {
        let bundle = try ModelBundle(place("BUNDLE"))
        try bundle.check()
        XCTAssertEqual(bundle.manifest.schema, 2)
        let old = try ModelBundle(place("DATA").appendingPathComponent("schema1"))
        try old.check()
        XCTAssertEqual(old.manifest.schema, 1)
        XCTAssertEqual(old.manifest.prompt.restarts, ["bos", "ids", "image"])
        XCTAssertTrue(old.manifest.sees)
    }

    func testAnotherSchemaIsNamedWithThoseThatAreRead() throws {
        let error = try spoilt("\"schema\": 2", "\"schema\": 3", "schema 3", "1 and 2")
        XCTAssertEqual(error?.hint, "a newer version of this app")
        try spoilt("\"schema\": 2", "\"schema\": 0", "schema 0")
        try spoilt("\"schema\": 2", "\"scheme\": 2", "no schema number")
    }

    func testWhatIsMissingOrOddIsNamed() throws {
        try spoilt("\"hidden\"", "\"hiden\"", "decoder lacks hidden")
        try spoilt("\"layers\": 6", "\"layers\": 0", "has layers 0")
        try spoilt("\"layers\": 6", "\"layers\": 4294967296", "has layers 4294967296")
        try spoilt("\"fit\": \"pad\"", "\"fit\": \"guess\"", "fit \"guess\"")
        try spoilt("\"cosine\": 0.", "\"distance\": 0.", "tolerance")
        try spoilt("\"schema\"", "schema", "no JSON")
        try spoilt("\"size\": 336", "\"size\": 2147483647", "has size 2147483647")
    }

    func testAPathThatLeadsOutIsRefused() throws {
        for path in ["../decoder.onnx", "/etc/passwd", "C:\\\\x", "a/../../x", "\\\\\\\\server\\\\x", ""] {
            try spoilt("\"path\": \"decoder.onnx\"", "\"path\": \"\(path)\"", "outside the bundle")
        }
    }

    func testALinkMayLeadOnlyToTheFileItself() throws {
        let folder = try copied()
        let (file, blob) = (
            folder.appendingPathComponent("decoder.onnx"), try temporary().appendingPathComponent("blob")
        )
        try FileManager.default.moveItem(at: file, to: blob)
        try FileManager.default.createSymbolicLink(at: file, withDestinationURL: blob)
        try ModelBundle(folder).check()
        try flip(blob)
        assertThrows(.bundle, "decoder.onnx", "not the file") { _ = try ModelBundle(folder) }
    }

    func testAFileThatIsCutOrFlippedIsFound() throws {
        let folder = try copied()
        let file = folder.appendingPathComponent("vision.onnx.data")
        let content = try Data(contentsOf: file)
        try content.prefix(content.count / 2).write(to: file)
        assertThrows(.bundle, "vision.onnx.data", "copied whole") { _ = try ModelBundle(folder) }
        try content.write(to: file)
        try flip(file)
        assertThrows(.bundle, "vision.onnx.data", "sha256") { try ModelBundle(folder).check() }
        try FileManager.default.removeItem(at: file)
        assertThrows(.bundle, "lacks vision.onnx.data") { _ = try ModelBundle(folder) }
    }

    func testAGoldenFileThatLiesIsRefusedBeforeAnythingIsAllocated() throws {
        func refused(_ header: String, _ word: String, size: UInt64? = nil, line: UInt = #line) throws {
            let file = try temporary().appendingPathComponent("golden.safetensors")
            let length = withUnsafeBytes(of: (size ?? UInt64(header.utf8.count)).littleEndian) { Data($0) }
            try (length + Data(header.utf8) + Data(count: 8)).write(to: file)
            assertThrows(.bundle, word, line: line) { _ = try Golden(file) }
        }
        func entry(_ shape: String, _ ends: String) -> String {
            "{\"dtype\": \"F32\", \"shape\": \(shape), \"data_offsets\": \(ends)}"
        }
        try refused("{\"a\": \(entry("[3]", "[0, 8]"))}", "lies in")
        try refused("{\"a\": \(entry("[1]", "[4, 8]"))}", "begins at")
        try refused("{\"a\": \(entry("[1]", "[0, 4]"))}", "take 4")
        try refused("{\"a\": \(entry("[1]", "[0, 4]")), \"a\": \(entry("[1]", "[4, 8]"))}", "stands twice")
        try refused("{\"a\": \(entry("[4611686018427387904, 4611686018427387904]", "[0, 8]"))}", "shape")
        try refused("{\"a\": \(entry("[2]", "[8, 0]"))}", "damaged")
        try refused("{\"a\": \(entry("[2]", "[0, 8]"))}", "has no picture")
        try refused(String(repeating: "[", count: 250), "nested")
        try refused("", "header of", size: .max)
    }

    func testAnEmbeddingTableOfAnotherShapeIsRefused() throws {
        let bundle = try ModelBundle(place("BUNDLE"))
        let files = try bundle.manifest.part("decoder").files.map(bundle.file)
        let spec = bundle.manifest.decoder
        _ = try EmbeddingTable(files, vocab: spec.vocab, hidden: spec.hidden)
        assertThrows(.bundle, "embed_tokens.npy", "\(spec.vocab + 1)") {
            _ = try EmbeddingTable(files, vocab: spec.vocab + 1, hidden: spec.hidden)
        }
        let cut = try temporary().appendingPathComponent("embed_tokens.npy")
        for length in [5, 40, 200] {
            try Data(readable(files.first { $0.lastPathComponent == "embed_tokens.npy" }!).prefix(length)).write(
                to: cut)
            assertThrows(.bundle, "damaged") { _ = try EmbeddingTable([cut], vocab: 1, hidden: 1) }
        }
    }

    func testABundleForAnotherEngineOrTooLargeIsNamed() throws {
        let bundle = try ModelBundle(place("BUNDLE"))
        let settings = Settings(threads: 1)
        assertThrows(.engine, "3072 MB", "1024 MB") {
            try FakeEngine(size: 3 << 30).require(bundle, settings, free: 1 << 30)
        }
        assertThrows(.engine, "onnx", "fake opens coreml") {
            try FakeEngine(formats: ["coreml"]).require(bundle, settings, free: nil)
        }
        try OrtEngine().require(bundle, settings, free: 1 << 30)
        XCTAssertGreaterThan(OrtEngine().predicted(bundle, settings), bundle.manifest.bytes)
        XCTAssertLessThan(
            OrtEngine().predicted(bundle, Settings(threads: 1, context: 64)), OrtEngine().predicted(bundle, settings))
    }

    @discardableResult
    private func spoilt(_ old: String, _ new: String, _ words: String..., line: UInt = #line) throws -> EdgeError? {
        let folder = try copied()
        let file = folder.appendingPathComponent("manifest.json")
        let text = Bytes(try Data(contentsOf: file))
        let made = text.replacing(Bytes(old), with: Bytes(new))
        XCTAssertNotEqual(made, text, "\(old) is not in it", line: line)
        try Data(made).write(to: file)
        let error = assertThrows(.bundle, words[0], line: line) { _ = try ModelBundle(folder) }
        for word in words { XCTAssertTrue(error?.message.contains(word) == true, word, line: line) }
        return error
    }
}

/// Another byte in the middle.
func flip(_ file: URL) throws {
    var content = try Data(contentsOf: file)
    content[content.count / 2] &+= 1
    try content.write(to: file)
}
