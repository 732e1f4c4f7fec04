// What the screens ask for, on the demo bundle: imports, answers, what is stopped, and what goes wrong.
import Foundation
import VLMCore
import XCTest

@testable import AppModel

private let bundle = URL(fileURLWithPath: ProcessInfo.processInfo.environment["EDGE_BUNDLE"] ?? "")
private let here = URL(fileURLWithPath: ProcessInfo.processInfo.environment["EDGE_HERE"] ?? "")

private func golden() throws -> Picture {
    let opened = try ModelBundle(bundle)
    return try Golden(opened.file(opened.manifest.golden)).picture
}

/// `work` on a model that has opened `own`, and has a folder for imports, which is gone afterwards.
@MainActor
private func with(_ own: URL?, _ work: @MainActor (DemoModel, URL) async throws -> Void) async throws {
    let root = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: root) }
    let model = DemoModel(root: root, own: own)
    XCTAssertEqual(model.busy?.hasPrefix("opening") ?? false, own != nil)
    await model.idle()
    XCTAssertNil(model.problem)
    try await work(model, root)
}

final class DemoModelTests: XCTestCase {
    func testAnAnswerStreamsAndIsKept() async throws {
        try await with(bundle) { model, root in
            model.look(at: try golden())
            await model.idle()
            for count in 1...2 {
                model.ask("What colour is the star?")
                XCTAssertEqual([model.busy, model.question], ["answering", "What colour is the star?"])
                await model.idle()
                XCTAssertEqual(model.exchanges.count, count)
            }
            XCTAssertNil(model.question)
            XCTAssertEqual(model.answer, model.exchanges.last?.answer)
            XCTAssertTrue(model.timings.contains("first word after"), model.timings)
            model.look(at: { Data([7]) }, decode: { _ in try Picture(width: 1, height: 1, rgb: [1, 2, 3]) })
            await model.idle()
            XCTAssertEqual([model.picture?.width, model.exchanges.count], [1, 0])
        }
    }

    func testWhatIsStoppedIsNoProblemAndTheNextQuestionIsAnswered() async throws {
        try await with(bundle) { model, root in
            model.bench()
            model.stop()
            await model.idle()
            XCTAssertNil(model.problem)
            XCTAssertNil(model.benchmark)
            model.ask("Hi")
            model.ask("What is this?")  // takes the place of the one before it
            await model.idle()
            XCTAssertEqual(model.exchanges.map(\.question), ["What is this?"])
        }
    }

    func testWhatGoesWrongIsASentence() async throws {
        try await with(bundle) { model, root in
            model.ask(" ")
            await model.idle()
            XCTAssertEqual(model.problem, "the question is empty. Try: ask something.")
            model.look(at: { Data() }, decode: { _ in throw EdgeError.image("the photo is no picture") })
            await model.idle()
            XCTAssertEqual(model.problem, "the photo is no picture.")
            model.add(root)
            await model.idle()
            XCTAssertEqual(model.problem?.contains("no manifest.json"), true)
            XCTAssertEqual(model.bundles.count, 1)
        }
    }

    func testAnImportIsListedOpenedAndProven() async throws {
        try await with(nil) { model, root in
            XCTAssertTrue(model.bundles.isEmpty && model.opened == nil && model.busy == nil)
            model.add(bundle)
            await model.idle()
            XCTAssertEqual(model.opened?.folder.lastPathComponent, bundle.lastPathComponent)
            XCTAssertEqual(model.choice, .onnxruntime)
            XCTAssertEqual(model.bundles.count, 1)
            model.verify()
            await model.idle()
            XCTAssertEqual(model.report?.ok, true)
            await model.trim()
            model.add(here.appendingPathComponent("packed.zip"))
            await model.idle()
            XCTAssertNil(model.problem)
            XCTAssertEqual(model.opened?.folder.lastPathComponent, "packed")
            XCTAssertEqual(model.bundles.count, 2)
        }
    }

    func testTheCameraIsAnsweredUntilItEnds() async throws {
        try await with(bundle) { model, root in
            let frames = Latest<Picture>()
            frames.put(try golden())
            let watching = Task { await model.watch(frames, "What colour is the star?") }
            while model.answer.isEmpty { try await Task.sleep(for: .milliseconds(5)) }
            frames.end()
            await watching.value
            XCTAssertNil(model.problem)
            XCTAssertEqual(model.picture?.width, try golden().width)
            XCTAssertTrue(model.timings.hasSuffix("0 frames passed over"), model.timings)
        }
    }
}

extension DemoModel {
    /// Until nothing is going on.
    func idle() async {
        while busy != nil { try? await Task.sleep(for: .milliseconds(2)) }
    }
}
