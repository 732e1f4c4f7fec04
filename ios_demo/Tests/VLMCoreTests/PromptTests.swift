// Conversations to segments, as Python cuts them.
import XCTest

@testable import VLMCore

final class PromptTests: XCTestCase {
    private func seen(_ grid: [Int]) -> Seen {
        let view = ImageRows(values: [], key: "image", count: 2)
        return Seen(
            views: [ImageRows](repeating: view, count: grid[0] * grid[1] + 1), rows: grid[0], columns: grid[1])
    }

    func testEveryConversationHasItsSegments() throws {
        let told = try json("GOLDEN", "prompts.json")
        let conversations = told.items("conversations")
        XCTAssertEqual(conversations.count, 22)
        for entry in conversations {
            let turns = entry.items("turns").map { turn in
                Turn(
                    question: turn.string("question"),
                    images: [Seen](repeating: seen(turn["grid"]?.numbers ?? [0, 0]), count: turn.number("images")),
                    answer: turn["answer"]?.text, answerIds: turn["answer_ids"]?.numbers)
            }
            let spec = try spec(told, entry.string("prompt"))
            let found = try segments(spec, tokenizer(entry.string("tokenizer")), turns, system: entry.at("system").text)
            XCTAssertEqual(
                found.map(\.ids), entry.items("segments").map { $0.isNull ? nil : $0.numbers }, entry.written)
        }
    }

    func testWhatATemplateHasNoPlaceForIsRefused() throws {
        let spec = try spec(json("GOLDEN", "prompts.json"), "chatml")
        let tokenizer = try tokenizer("byte_fallback")
        assertThrows(.usage, "system message") {
            _ = try segments(spec, tokenizer, [Turn(question: "Hi")], system: "Be brief.")
        }
        assertThrows(.usage, "turn 1 of 2") {
            _ = try segments(spec, tokenizer, [Turn(question: "Hi"), Turn(question: "Ho")])
        }
    }

    func testSlotsThatCannotBeFilledAreRefused() throws {
        let own = try json("GOLDEN", "prompts.json").at("prompts").at("vicuna").members ?? []
        func spoilt(_ name: String, _ value: Json?) throws {
            let kept = own.filter { $0.name != name } + (value.map { [Json.Member(name, $0)] } ?? [])
            _ = try PromptSpec(Fields(.object(kept), "prompt"))
        }
        let slot = Json.object([Json.Member("slot", .text("content"))])
        let image = Json.list([.object([Json.Member("slot", .text("image"))])])
        assertThrows(.bundle, "generation") { try spoilt("generation", .list([slot])) }
        assertThrows(.bundle, "lacks end_ids") { try spoilt("end_ids", nil) }
        assertThrows(.bundle, "stop_ids [-1]") { try spoilt("stop_ids", .list([.whole(-1)])) }
        assertThrows(.bundle, "no stop_ids") { try spoilt("stop_ids", .list([])) }
        let (pieces, none) = (Json.list([slot]), Json.list([]))
        func views(_ end: Json, _ tiles: Json) -> Json {
            .object([Json.Member("row_end", end), Json.Member("overview", image), Json.Member("tiles", tiles)])
        }
        assertThrows(.bundle, "views.row_end") { try spoilt("views", views(pieces, .list([.list([image])]))) }
        assertThrows(.bundle, "no table") {
            try spoilt("views", views(none, .list([.list([image]), .list([image, image])])))
        }
        assertThrows(.bundle, "views.tiles") { try spoilt("views", views(none, .list([.list([none])]))) }
        assertThrows(.bundle, "restarts") { try spoilt("restarts", .list([.text("dawn")])) }
    }

    private func spec(_ told: Json, _ name: String) throws -> PromptSpec {
        try PromptSpec(Fields(told.at("prompts").at(name), "prompt"))
    }
}
