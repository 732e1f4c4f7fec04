// What several tests share: golden vectors, the demo bundle, and copies of it to spoil.
import Foundation
import XCTest

@testable import VLMCore

/// Folders that the command which starts the tests names.
func place(_ name: String) -> URL {
    guard let path = ProcessInfo.processInfo.environment["EDGE_\(name)"] else { fatalError("EDGE_\(name) is not set") }
    return URL(fileURLWithPath: path)
}

func json(_ folder: String, _ name: String) throws -> Json {
    try JsonReader.parse(readable(place(folder).appendingPathComponent(name)))
}

extension Json {
    /// Of fixtures, where what is missing is a mistake.
    func at(_ name: String) -> Json {
        guard let found = self[name] else { fatalError("the fixture has no \(name)") }
        return found
    }

    func items(_ name: String) -> [Json] { at(name).list ?? [] }
    func number(_ name: String) -> Int { at(name).whole ?? -1 }
    func string(_ name: String) -> String { at(name).text ?? "" }
    var numbers: [Int] { (list ?? []).compactMap(\.whole) }
}

func floats(_ name: String) throws -> [Float] {
    let data = try readable(place("HERE").appendingPathComponent(name))
    return Numbers(dtype: "<f4", shape: [data.count / 4], data: data, offset: 0).values(Float.self)
}

func tokenizer(_ name: String) throws -> Tokenizer {
    let plain = place("DATA").appendingPathComponent("tokenizer.json")
    let other = place("GOLDEN").appendingPathComponent("tokenizers/\(name).json")
    return try Tokenizer(readable(name == "byte_fallback" ? plain : other))
}

extension XCTestCase {
    /// A folder that is gone after the test.
    func temporary() throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
        return folder
    }

    /// A copy of the demo bundle to change.
    func copied() throws -> URL {
        let folder = try temporary().appendingPathComponent("bundle")
        try FileManager.default.copyItem(at: place("BUNDLE"), to: folder)
        return folder
    }

    /// The error that is thrown, which says all of `words`.
    @discardableResult
    func assertThrows(
        _ kind: EdgeError.Kind,
        _ words: String...,
        line: UInt = #line,
        _ work: () throws -> Void
    ) -> EdgeError? {
        do {
            try work()
        } catch let error as EdgeError {
            XCTAssertEqual(error.kind, kind, error.message, line: line)
            for word in words {
                XCTAssertTrue(error.message.contains(word), "\(error.message) says nothing of \(word)", line: line)
            }
            return error
        } catch {
            XCTFail("\(error) was thrown", line: line)
        }
        XCTFail("nothing was thrown", line: line)
        return nil
    }

    func assertSame(_ a: String, _ b: String, line: UInt = #line) {
        XCTAssertTrue(same(a, b), "\(a.debugDescription) is not \(b.debugDescription)", line: line)
    }
}

/// The picture that Python was asked about.
func picture(_ asked: Json) throws -> Picture {
    let rgb = try readable(place("HERE").appendingPathComponent(asked.string("picture") + ".rgb"))
    return try Picture(width: asked.number("width"), height: asked.number("height"), rgb: Array(rgb))
}

/// Answers by script: no library, no memory to speak of.
struct FakeEngine: Engine {
    var name = "fake"
    var formats: Set<String> = ["onnx"]
    var size = 0
    var error: Float = 0

    func predicted(_ bundle: ModelBundle, _ settings: Settings) -> Int { size }
    func open(_ bundle: ModelBundle, _ settings: Settings) throws -> any Model { try GoldenModel(bundle, error) }
}

/// What the golden sample says, but for `error` added to every number.
final class GoldenModel: Model {
    private let golden: Golden
    private let error: Float
    private let hidden: Int
    private var steps = 0
    let context: Int
    private(set) var position = 0

    init(_ bundle: ModelBundle, _ error: Float) throws {
        golden = try Golden(bundle.file(bundle.manifest.golden))
        hidden = bundle.manifest.decoder.hidden
        context = bundle.manifest.decoder.context
        self.error = error
    }

    func see(_ pixels: [Float], _ stop: Stop) throws -> [Float] { golden.stored.imageEmbeds.map { $0 + error } }

    func gather(_ ids: [Int], into rows: inout [Float]) throws {
        rows += [Float](repeating: 0, count: ids.count * hidden)
    }

    func extend(_ rows: [Float], _ stop: Stop) throws -> [Float] {
        let first = position == 0
        position += rows.count / hidden
        steps = first ? 0 : steps + 1
        if first { return golden.stored.logits.map { $0 + error } }
        var logits = [Float](repeating: 0, count: golden.stored.logits.count)
        logits[golden.stored.tokens[min(steps, 15)]] = 1
        return logits
    }

    func rewind(_ position: Int) throws { self.position = position }
    func freeVision() {}
}
