// The demo bundle on ONNX Runtime: the bits of Python on the same library, and what a session remembers.
import Foundation
import XCTest

@testable import VLMCore

final class SessionTests: XCTestCase {
    nonisolated(unsafe) static var opened: Session?
    private static let here = Result { try json("HERE", "here.json") }
    private var answers: [Json] { get throws { try Self.here.get().items("answers") } }

    private var session: Session {
        get throws {
            if let opened = Self.opened { return opened }
            let made = try Session(ModelBundle(place("BUNDLE")), OrtEngine(), Settings(threads: 2))
            Self.opened = made
            return made
        }
    }

    override class func tearDown() { opened = nil }

    func testTheGoldenPictureAndForcedStepsHavePythonsBits() throws {
        let session = try session
        let manifest = session.bundle.manifest
        let golden = try Golden(session.bundle.file(manifest.golden))
        let rows = try session.encode(golden.pixelValues)
        XCTAssertEqual(rows.values, try floats("image_embeds.f32"))
        session.forget()
        try session.model.rewind(0)
        let expected = try floats("logits.f32")
        var logits = try session.model.extend(
            manifest.goldenSegments.map { $0.map(Segment.tokens) ?? .rows(rows) }, Stop())
        let forced = try Self.here.get().at("forced").numbers
        XCTAssertEqual(forced.count, 16)
        for step in 0...forced.count {
            XCTAssertEqual(logits, Array(expected[step * logits.count..<(step + 1) * logits.count]), "step \(step)")
            if step < forced.count { logits = try session.model.extend([.tokens([forced[step]])], Stop()) }
        }
    }

    func testTheBundlesTokenizerHasPythonsIds() throws {
        let (here, tokenizer) = (try Self.here.get(), try session.tokenizer)
        for (text, ids) in zip(here.items("texts").compactMap(\.text), here.items("ids")) {
            XCTAssertEqual(tokenizer.encode(text), ids.numbers, text)
        }
    }

    func testQuestionsAndFollowUpsHavePythonsAnswers() throws {
        let session = try session
        XCTAssertEqual(try answers.count, 9)
        var chats: [String: Chat] = [:]
        for asked in try answers {
            let question = asked.string("question")
            var chat = try chats[asked.string("picture")] ?? Chat(picture(asked))
            var alone = Chat(chat.picture)
            var pieces = ""
            let answer = try alone.ask(question, of: session) { pieces += $0 }
            XCTAssertEqual(answer.ids, asked.at("ids").numbers)
            assertSame(answer.text, asked.string("text"))
            assertSame(pieces, asked.string("text"))
            XCTAssertEqual(answer.stopReason, asked.string("stop"))
            assertSame(try chat.ask(question, of: session).text, asked.string("later"))
            chats[asked.string("picture")] = chat
        }
    }

    func testTheProofHoldsForThisAndForSchemaOne() throws {
        let report = try verify(session)
        XCTAssertTrue(report.ok, report.sentence)
        XCTAssertEqual(report.rows.count, 8)
        XCTAssertTrue(report.sentence.contains("the same model: cosine 0.99"), report.sentence)
        XCTAssertTrue(report.json.written.hasPrefix("{\"ok\": true, "))
        let old = try ModelBundle(place("HERE").appendingPathComponent("schema1"))
        XCTAssertEqual(old.manifest.schema, 1)
        let proof = try verify(Session(old, OrtEngine(), Settings(threads: 1)))
        XCTAssertTrue(proof.ok, proof.sentence)
    }

    func testAnotherModelIsNamed() throws {
        for error in [Float(0.5), .nan] {
            let wrong = try Session(ModelBundle(place("BUNDLE")), FakeEngine(error: error), Settings(threads: 1))
            let report = try verify(wrong)
            XCTAssertFalse(report.ok)
            XCTAssertTrue(
                report.sentence.contains("ANOTHER model") && report.sentence.contains("vision"), report.sentence)
        }
        let right = try Session(ModelBundle(place("BUNDLE")), FakeEngine(), Settings(threads: 1))
        XCTAssertTrue(try verify(right).ok)
    }

    func testWhatWasComputedIsNotComputedAgain() throws {
        let session = try session
        let picture = try picture(answers[0])
        session.forget()
        var chat = Chat(picture)
        let first = try chat.ask("What colour is the star?", of: session)
        let second = try chat.ask("How many stars are there?", of: session)
        XCTAssertEqual(first.cachedTokens, 0)
        XCTAssertGreaterThanOrEqual(second.cachedTokens, first.promptTokens + first.ids.count)
        let times = ImageTimes()
        _ = try session.encode(picture, times: times)
        XCTAssertEqual(second.timings.prefill > 0 && second.timings.firstToken > 0, true)
        let past = Array(chat.exchanges.prefix(1))  // of a process that ended
        var restored = Chat(picture, past: past)
        assertSame(try restored.ask("How many stars are there?", of: session).text, second.text)
        session.trim()
        restored = Chat(picture, past: past)
        assertSame(try restored.ask("How many stars are there?", of: session).text, second.text)
    }

    func testAnAnswerThatIsStoppedEndsAndTheSessionGoesOn() throws {
        let (session, asked) = (try session, try answers[0])
        var chat = Chat(try picture(asked))
        let stop = Stop()
        assertThrows(.stopped) {
            _ = try chat.ask("Describe the picture.", of: session, stop: stop) { _ in stop.now() }
        }
        assertThrows(.stopped) { _ = try chat.ask("Describe the picture.", of: session, stop: stop) }
        XCTAssertEqual(chat.exchanges.count, 0)
        assertSame(try chat.ask(asked.string("question"), of: session).text, asked.string("text"))
    }

    func testTheEndIsHeardWithinARunOfTheLibrary() throws {
        let (session, asked) = (try session, try answers[0])
        let long = Segment.tokens([Int](repeating: 5, count: session.model.context - 1))
        let stop = Stop()
        session.forget()
        DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(2)) { stop.now() }
        assertThrows(.stopped) {
            while true {
                try session.model.rewind(0)
                _ = try session.model.extend([long], stop)
            }
        }
        var chat = Chat(try picture(asked))
        assertSame(try chat.ask(asked.string("question"), of: session).text, asked.string("text"))
    }

    func testWhatDoesNotFitIsASentence() throws {
        let session = try session
        var chat = Chat(nil)
        let long = String(repeating: "the star ", count: 2000)
        assertThrows(.context, "\(session.model.context)") { _ = try chat.ask(long, of: session) }
        assertThrows(.usage, "empty") { _ = try chat.ask(" \n ", of: session) }
        assertThrows(.usage, "maxTokens") { _ = try chat.ask("Hi", of: session, Ask(maxTokens: 0)) }
        assertThrows(.engine, "99999") { _ = try session.model.extend([.tokens([99_999])], Stop()) }
        assertThrows(.engine, "cannot rewind") { try session.model.rewind(5000) }
        let small = try Session(session.bundle, OrtEngine(), Settings(threads: 1, context: 200))
        XCTAssertEqual(small.model.context, 200)
        var endless = Chat(try picture(answers[0]))
        let ask = Ask(sampling: try Sampling(repeatPenalty: 1e-9))
        XCTAssertEqual(try endless.ask("Hi", of: small, ask).stopReason, "context")
    }

    func testAPartThatIsNotTheManifestsIsNamed() throws {
        let folder = try copied()
        let bundle = try ModelBundle(folder)
        let part = try bundle.manifest.part("decoder")
        assertThrows(.engine, "vision.onnx", "not the part") {
            _ = try OrtGraph(folder.appendingPathComponent("vision.onnx"), part: part, threads: 1)
        }
        try Data("no graph".utf8).write(to: folder.appendingPathComponent("vision.onnx"))
        assertThrows(.engine, "vision.onnx does not open") {
            _ = try OrtGraph(folder.appendingPathComponent("vision.onnx"), part: part, threads: 1)
        }
    }

    func testOpeningAgainAndAgainKeepsNoMemory() throws {
        let (bundle, picture) = (try session.bundle, try picture(answers[0]))
        func once() throws {
            var chat = Chat(picture)
            _ = try chat.ask("Hi", of: Session(bundle, OrtEngine(), Settings(threads: 1)), Ask(maxTokens: 2))
        }
        for _ in 0..<10 { try once() }  // until the allocator has what it keeps
        let before = Machine.memory() ?? 0
        for _ in 0..<20 { try once() }
        let grown = ((Machine.memory() ?? 0) - before) >> 20
        XCTAssertLessThan(grown, 60, "MB more after twenty times")  // the weights alone would be 90
    }

    func testTheBenchmarkWritesRowsThatEdgeBenchReads() throws {
        var bench = try Bench(
            session, engine: "onnxruntime", settings: Settings(threads: 2), device: "a phone", version: "0",
            repetitions: 2)
        let rows = try bench.rows()
        let tests = ["peak memory", "preprocess", "vision encode", "pp190", "tg64", "first token"]
        XCTAssertEqual(rows.map { $0.string("test") }, tests)
        try Data(Bench.json(rows).utf8).write(to: place("OUT").appendingPathComponent("bench.json"))
    }
}
