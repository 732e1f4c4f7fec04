// Imports: checked before they replace anything, and cleared where they were cut off.
import Foundation
import XCTest

@testable import VLMCore

final class StoreTests: XCTestCase {
    private let files = FileManager.default
    private let engines: [any Engine] = [FakeEngine()]

    private func names(_ root: URL) throws -> [String] { try files.contentsOfDirectory(atPath: root.path).sorted() }

    func testAFolderIsCheckedBeforeItReplacesAnything() throws {
        let root = try temporary()
        let store = try Store(root)
        let made = try store.add("demo", from: place("BUNDLE"), engines: engines)
        XCTAssertEqual(made.folder.lastPathComponent, "demo")
        let broken = try copied()
        try flip(broken.appendingPathComponent("decoder.onnx.data"))
        assertThrows(.bundle, "decoder.onnx.data") { _ = try store.add("demo", from: broken, engines: engines) }
        assertThrows(.bundle, "no manifest.json") { _ = try store.add("demo", from: temporary(), engines: engines) }
        try store.bundles[0].check()
        XCTAssertEqual(try names(root), ["demo"])
    }

    func testWhatTheManifestDoesNotNameStaysOutside() throws {
        let root = try temporary()
        let folder = try copied()
        try Data("x".utf8).write(to: folder.appendingPathComponent("extra"))
        let blob = try temporary().appendingPathComponent("blob")
        let file = folder.appendingPathComponent("decoder.onnx")
        try files.moveItem(at: file, to: blob)
        try files.createSymbolicLink(at: file, withDestinationURL: blob)
        let made = try Store(root).add("demo", from: folder.deletingLastPathComponent(), engines: engines)
        XCTAssertFalse(files.fileExists(atPath: made.folder.appendingPathComponent("extra").path))
        try files.removeItem(at: blob)
        try made.check()  // the link was followed, not copied
    }

    func testAnImportThatWasKilledLeavesTheOldBundle() throws {
        let root = try temporary()
        _ = try Store(root).add("demo", from: place("BUNDLE"), engines: engines)
        try files.createDirectory(at: root.appendingPathComponent(".part-demo"), withIntermediateDirectories: true)
        try files.moveItem(at: root.appendingPathComponent("demo"), to: root.appendingPathComponent(".old-demo"))
        let again = try Store(root)  // killed between the two renames
        XCTAssertEqual(try names(root), ["demo"])
        XCTAssertEqual(again.bundles.count, 1)
        _ = try again.add("../.old-x.part", from: place("BUNDLE"), engines: engines)
        XCTAssertEqual(try Store(root).bundles.count, 2)
        let stop = Stop()
        assertThrows(.stopped) {
            _ = try again.add("other", from: place("BUNDLE"), engines: engines, stop: stop) { _ in stop.now() }
        }
        XCTAssertEqual(again.bundles.count, 2)
        XCTAssertFalse(try names(root).contains(".part-other"))
        try again.remove(again.bundles[0])
        XCTAssertEqual(again.bundles.count, 1)
    }

    func testABundleThatNoEngineOpensIsNotTaken() throws {
        let root = try temporary()
        let other = [FakeEngine(name: "coreml", formats: ["coreml"])]
        assertThrows(.engine, "coreml opens coreml") {
            _ = try Store(root).add("demo", from: place("BUNDLE"), engines: other)
        }
        XCTAssertEqual(try names(root), [])
    }
}
