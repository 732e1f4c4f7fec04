// A bundle that divides images into tiles: Python's answers.
import XCTest

@testable import VLMCore

final class ViewsTests: XCTestCase {
    func testQuestionsAboutTilesHavePythonsAnswers() throws {
        let bundle = try ModelBundle(place("HERE").appendingPathComponent("tiled"))
        XCTAssertEqual(bundle.manifest.mostViews, 5)
        let session = try Session(bundle, OrtEngine(), Settings(threads: 2))
        let tiled = try json("HERE", "here.json").items("tiled")
        XCTAssertEqual(tiled.count, 3)
        for entry in tiled {
            let seen = try session.encode(picture(entry))
            XCTAssertEqual([seen.rows, seen.columns], entry.at("grid").numbers)
            var chat = Chat(try picture(entry))
            let answer = try chat.ask(entry.string("question"), of: session, Ask(maxTokens: 24))
            XCTAssertEqual(answer.ids, entry.at("ids").numbers)
            assertSame(answer.text, entry.string("text"))
            assertSame(try chat.ask("Why?", of: session, Ask(maxTokens: 24)).text, entry.string("later"))
        }
    }

    func testTilesWithoutPiecesOfThePromptAreRefused() throws {
        let folder = place("HERE").appendingPathComponent("tiled/manifest.json")
        let told = try readable(folder)
        let bare = Bytes(told).replacing(Bytes("\"views\": {\"tiles\""), with: Bytes("\"view\": {\"tiles\""))
        assertThrows(.bundle, "2 tiles a side") { _ = try Manifest(bare) }
    }
}
