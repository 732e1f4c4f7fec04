// What a Core ML part is held to before Core ML is asked, and how its functions are run.
import XCTest

@testable import VLMCore

final class CoreMLPlanTests: XCTestCase {
    private let details = """
        {"minimum": {"ios": "18.0", "macos": "15.0"}, "functions": {"prefill": {}, "decode": {}}, "masked": -10000.0,
        "states": [{"name": "key_cache", "dtype": "float16", "shape": [6, 1, 4, 512, 32]},
        {"name": "value_cache", "dtype": "float16", "shape": [6, 1, 4, 512, 32]}]}
        """

    private func spec(vocab: Int = 3, hidden: Int = 2) throws -> DecoderSpec {
        let told = """
            {"layers": 6, "kv_heads": 4, "head_dim": 32, "hidden": \(hidden), "vocab": \(vocab), "context": 512}
            """
        return try DecoderSpec(Fields(JsonReader.parse(Bytes(told)), "decoder"))
    }

    private func plan(
        _ old: String = "",
        _ new: String = "",
        covers: String = "decoder",
        path: String = "Decoder.mlpackage/Manifest.json",
        system: String = "18.2.1"
    ) throws -> CoreMLPlan {
        let made = Bytes(details).replacing(Bytes(old), with: Bytes(new)).text
        XCTAssertTrue(old.isEmpty || made != details, old)
        let told = """
            {"covers": ["\(covers)"], "format": "coreml", "scheme": "w8", "inputs": [], "outputs": [], "tolerance": {},
            "files": [{"path": "\(path)", "bytes": 1, "sha256": "ab"}], "details": \(made)}
            """
        let part = try Part(Fields(JsonReader.parse(Bytes(told)), "part"))
        return try CoreMLPlan(part, spec: spec(), system: ("ios", system))
    }

    func testWhatTheExportWroteIsTaken() throws {
        let plan = try plan()
        XCTAssertEqual(plan.package, "Decoder.mlpackage")
        XCTAssertEqual(plan.held, 512)
        XCTAssertEqual(plan.masked, -10000)
        XCTAssertEqual(plan.key.count, 16)
        XCTAssertNil(try self.plan("\"prefill\"", "\"encode\"", covers: "vision").held)
    }

    func testASystemThatIsTooOldIsNamed() throws {
        assertThrows(.engine, "needs ios 18.0", "this is 17.6.1") { _ = try plan(system: "17.6.1") }
        assertThrows(.engine, "needs ios 26.1") { _ = try plan("\"ios\": \"18.0\"", "\"ios\": \"26.1\"") }
        _ = try plan("\"ios\": \"18.0\"", "\"ios\": \"18\"", system: "18.0.0")
        XCTAssertTrue(CoreMLPlan.older("9.3", than: "18.0") && !CoreMLPlan.older("18.10", than: "18.9"))
    }

    func testStatesAndFunctionsThatAreNotTheDecodersAreNamed() throws {
        assertThrows(.bundle, "key_cache", "not this decoder's") {
            _ = try plan("[6, 1, 4, 512, 32]", "[6, 1, 8, 512, 32]")
        }
        assertThrows(.bundle, "not this decoder's") { _ = try plan("float16", "float32") }
        assertThrows(.bundle, "not key_cache and value_cache") { _ = try plan("value_cache", "cache") }
        assertThrows(.bundle, "no function decode") { _ = try plan("\"decode\"", "\"encode\"") }
        assertThrows(.bundle, "no function encode") { _ = try plan(covers: "vision") }
        assertThrows(.bundle, "in no package") { _ = try plan(path: "decoder.onnx") }
        assertThrows(.bundle, "lacks states") { _ = try plan("\"states\"", "\"statues\"") }
    }

    func testAPromptIsPrefilledAndATokenDecoded() throws {
        let functions = Recorder()
        var decoder = try StatefulDecoder(functions, spec(), context: 4, masked: -9)
        XCTAssertEqual(try decoder.extend([1, 2, 3, 4], Stop()), [7, 8, 9])
        XCTAssertEqual(try decoder.extend([5, 6], Stop()), [7, 8, 9])
        try decoder.rewind(1)
        _ = try decoder.extend([1, 1, 2, 2], Stop())
        XCTAssertEqual(functions.calls, ["prefill 2 of 2", "decode 1 of 3", "prefill 2 of 3"])
        XCTAssertEqual(functions.masks, [[0, -9, 0, 0], [0, 0, 0], [0, 0, -9, 0, 0, 0]])
        assertThrows(.context, "5 positions") { _ = try decoder.extend([1, 2, 3, 4], Stop()) }
        assertThrows(.engine, "no rows") { _ = try decoder.extend([1, 2, 3], Stop()) }
        assertThrows(.engine, "cannot rewind") { try decoder.rewind(4) }
    }

    func testAStateThatTheSystemRefusesLeavesThePositionAsItWas() throws {
        let functions = Recorder()
        var decoder = try StatefulDecoder(functions, spec(), context: 9, masked: -9)
        _ = try decoder.extend([1, 2], Stop())
        functions.refuses = true
        assertThrows(.engine, "the state is refused") { _ = try decoder.extend([1, 2], Stop()) }
        functions.refuses = false
        functions.logits = [1]
        assertThrows(.engine, "1 logits, not 3") { _ = try decoder.extend([1, 2], Stop()) }
        let stop = Stop()
        stop.now()
        assertThrows(.stopped) { _ = try decoder.extend([1, 2], stop) }
        XCTAssertEqual(decoder.position, 1)
    }
}

private final class Recorder: StatefulFunctions {
    var calls: [String] = []
    var masks: [[Float]] = []
    var logits: [Float] = [7, 8, 9]
    var refuses = false

    func run(_ function: String, rows: [Float], mask: [Float], new: Int, total: Int) throws -> [Float] {
        if refuses { throw EdgeError.engine("the state is refused") }
        calls.append("\(function) \(new) of \(total)")
        masks.append(mask)
        return logits
    }
}
