// Texts to ids and back, as Python has them.
import Foundation
import XCTest

@testable import VLMCore

final class TokenizerTests: XCTestCase {
    private static let told = Result { try json("GOLDEN", "texts.json") }
    private var texts: [String] { get throws { try Self.told.get().items("texts").compactMap(\.text) } }

    func testEveryAwkwardTextHasItsIds() throws {
        let texts = try self.texts
        try eachTokenizer { name, tokenizer, own in
            for (field, start) in [("ids", true), ("within", false)] {
                for (text, ids) in zip(texts, own.items(field)) {
                    XCTAssertEqual(tokenizer.encode(text, start: start), ids.numbers, "\(name) \(field): \(text)")
                }
            }
        }
    }

    func testEveryFuzzedTextHasItsIds() throws {
        let fuzzed = Array(try texts.dropFirst(try Self.told.get().number("awkward")))
        XCTAssertEqual(fuzzed.count, 3000)
        try eachTokenizer { name, tokenizer, own in
            let digests = Bytes(own.string("digests"))
            let wrong = fuzzed.indices.filter { place in
                digest(tokenizer.encode(fuzzed[place])) != Bytes(digests[8 * place..<8 * place + 8]).text
            }
            XCTAssertTrue(
                wrong.isEmpty, "\(name): \(wrong.count), as \(wrong.prefix(3).map { fuzzed[$0].debugDescription })")
        }
    }

    func testIdsHaveTheirText() throws {
        try eachTokenizer { name, tokenizer, own in
            for row in own.items("decoded") { assertSame(tokenizer.decode(row.at("ids").numbers), row.string("text")) }
        }
    }

    /// Swift's own `==` takes these for equal, and a dictionary of its texts would merge them.
    func testTextsThatOnlyLookEqualHaveIdsOfTheirOwn() throws {
        let (one, two) = ("\u{e9}", "e\u{301}")
        XCTAssertTrue(one == two && !same(one, two))
        for name in ["byte_fallback", "gpt2"] {
            let tokenizer = try tokenizer(name)
            XCTAssertNotEqual(tokenizer.encode(one), tokenizer.encode(two), name)
            assertSame(tokenizer.decode(tokenizer.encode(one)), one)
            assertSame(tokenizer.decode(tokenizer.encode(two)), two)
        }
        let merged = try JsonReader.parse(Array("{\"\u{e9}\": 1, \"e\u{301}\": 2}".utf8))
        XCTAssertEqual([merged["\u{e9}"]?.whole, merged["e\u{301}"]?.whole], [1, 2])
        XCTAssertTrue("K" == "\u{212A}" && !same("K", "\u{212A}"))  // the Kelvin sign
    }

    func testWhatIsNotReadIsRefusedByName() throws {
        let whole = try readable(place("DATA").appendingPathComponent("tokenizer.json"))
        let words = try readable(place("GOLDEN").appendingPathComponent("tokenizers/qwen2.json"))
        func spoilt(_ data: Data, _ old: String, _ new: String) throws -> Bytes {
            let made = Bytes(data).replacing(Bytes(old), with: Bytes(new))
            XCTAssertNotEqual(made, Bytes(data))
            return made
        }
        assertThrows(.bundle, "Unigram") { _ = try Tokenizer(spoilt(whole, "\"BPE\"", "\"Unigram\"")) }
        assertThrows(.bundle, "Lowercase") { _ = try Tokenizer(spoilt(whole, "\"Prepend\"", "\"Lowercase\"")) }
        assertThrows(.bundle, "Qwen2") { _ = try Tokenizer(spoilt(words, #"\\p{N}|"#, #"\\p{N}{1,2}|"#)) }
        assertThrows(.bundle, "no JSON") { _ = try Tokenizer(whole.prefix(500)) }
        assertThrows(.bundle, "no object") { _ = try Tokenizer(Bytes("[]")) }
        assertThrows(.bundle, "has the id") { _ = try Tokenizer(spoilt(whole, "\"<0x00>\":", "\"<0x00>\":9999999")) }
    }

    func testALongTextTakesNoSquareOfItsLength() throws {
        let long = String(repeating: "the sign says ", count: 20_000)
        XCTAssertGreaterThan(try tokenizer("byte_fallback").encode(long).count, 20_000)
    }

    func testStopStringsEndATextWhereverTheyFall() {
        var filter = StopFilter(["</s>", "END"])
        XCTAssertEqual(filter.push("a<"), "a")
        XCTAssertEqual(filter.push("b<"), "<b")
        XCTAssertEqual(filter.push("/s"), "")
        XCTAssertEqual(filter.push(">rest"), "")
        XCTAssertTrue(filter.stopped)
        XCTAssertEqual(filter.push("more") + filter.finish(), "")
    }

    private func eachTokenizer(_ test: (String, Tokenizer, Json) throws -> Void) throws {
        let all = try Self.told.get().at("tokenizers").members ?? []
        XCTAssertEqual(all.count, 7)
        for member in all { try test(member.name, tokenizer(member.name), member.value) }
    }

    private func digest(_ ids: [Int]) -> String {
        let text = Bytes(ids.map(String.init).joined(separator: ","))
        return String(text.withUnsafeBytes { Sha256.of($0) }.prefix(8))
    }
}
