// An answer as a stream: what it tells, and that it ends when nobody listens.
import Foundation
import XCTest

@testable import VLMCore

final class AssistantTests: XCTestCase {
    private func assistant() async throws -> (Assistant, Json) {
        let asked = try json("HERE", "here.json").items("answers")[0]
        let bundle = try ModelBundle(place("BUNDLE"))
        let made = try await Assistant.open(bundle, engine: OrtEngine(), settings: Settings(threads: 2))
        await made.look(at: try picture(asked))
        return (made, asked)
    }

    func testAnAnswerComesInPieces() async throws {
        let (assistant, asked) = try await assistant()
        let (text, answer) = try await listened(assistant.stream(asked.string("question")))
        assertSame(text, asked.string("text"))
        assertSame(answer?.text ?? "", asked.string("text"))
        XCTAssertEqual(answer?.ids, asked.at("ids").numbers)
        let exchanges = await assistant.exchanges
        XCTAssertEqual(exchanges.count, 1)
    }

    func testWhoStopsListeningEndsTheComputing() async throws {
        let (assistant, asked) = try await assistant()
        let endless = Ask(sampling: try Sampling(repeatPenalty: 1e-9))
        for try await _ in assistant.stream("Describe the picture.", endless) { break }
        let task = Task { try await listened(assistant.stream("Describe the picture again.", endless)) }
        task.cancel()
        _ = try? await task.value
        let (text, _) = try await listened(assistant.stream(asked.string("question")))
        assertSame(text, asked.string("text"))
        let exchanges = await assistant.exchanges
        XCTAssertEqual(exchanges.count, 1, "those that were stopped are not kept")
    }

    func testWhatFailsEndsTheStreamWithASentence() async throws {
        let (assistant, _) = try await assistant()
        do {
            _ = try await listened(assistant.stream(" "))
            XCTFail("nothing was thrown")
        } catch let error as EdgeError {
            XCTAssertEqual(error.sentence, "the question is empty. Try: ask something.")
        }
    }

    func testAGlanceIsInNoConversation() async throws {
        let (assistant, asked) = try await assistant()
        let (picture, question) = (try picture(asked), asked.string("question"))
        let answer = try await assistant.glance(picture, question, Ask(), stop: Stop())
        assertSame(answer.text, asked.string("text"))
        let exchanges = await assistant.exchanges
        XCTAssertEqual(exchanges.count, 0)
        let proof = try await assistant.verify()
        XCTAssertTrue(proof.ok)
    }

    func testADamagedFileReachesNoEngine() async throws {
        let folder = try copied()
        try flip(folder.appendingPathComponent("decoder.onnx.data"))
        let engine = Untouched()
        do {
            _ = try await Assistant.open(ModelBundle(folder), engine: engine, settings: Settings(threads: 1))
            XCTFail("nothing was thrown")
        } catch let error as EdgeError {
            XCTAssertTrue(error.message.contains("decoder.onnx.data"), error.message)
        }
    }

    func testOpeningCanBeStopped() async throws {
        let stop = Stop()
        do {
            _ = try await Assistant.open(
                ModelBundle(place("BUNDLE")), engine: OrtEngine(), settings: Settings(threads: 1), stop: stop
            ) { _ in stop.now() }
            XCTFail("nothing was thrown")
        } catch let error as EdgeError {
            XCTAssertEqual(error.kind, .stopped)
        }
    }
}

private func listened(_ stream: AsyncThrowingStream<Event, any Error>) async throws -> (text: String, answer: Answer?) {
    var (text, answer) = ("", Answer?.none)
    for try await event in stream {
        switch event {
        case .text(let piece): text += piece
        case .done(let done): answer = done
        }
    }
    return (text, answer)
}

/// An engine that must not be asked to prepare or open anything.
private struct Untouched: Engine {
    let name = "untouched"
    let formats: Set<String> = ["onnx"]

    func predicted(_ bundle: ModelBundle, _ settings: Settings) -> Int { 0 }
    func prepare(_ bundle: ModelBundle) async throws { XCTFail("a damaged bundle is prepared") }

    func open(_ bundle: ModelBundle, _ settings: Settings) throws -> any Model {
        XCTFail("a damaged bundle is opened")
        throw EdgeError.engine("opened")
    }
}
