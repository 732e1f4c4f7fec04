// Images to pixels: the bits of Pillow and NumPy. And the digest that they are compared by.
import XCTest

@testable import VLMCore

final class PixelsTests: XCTestCase {
    func testEveryPictureHasPillowsBits() throws {
        let told = try json("GOLDEN", "images.json")
        let images = told.items("images")
        XCTAssertGreaterThan(images.count, 10)
        for entry in images {
            let spec = try ImageSpec(Fields(.object((told.members ?? []) + (entry.members ?? [])), "image"))
            XCTAssertEqual(digest(pixels(try made(entry), spec)), entry.string("sha256"), entry.written)
        }
    }

    func testEveryDivisionHasPillowsBits() throws {
        let told = try json("GOLDEN", "images.json")
        let found = told.items("divided")
        XCTAssertEqual(found.count, 8)
        for entry in found {
            let (size, edge) = (entry.number("size"), entry.number("long_edge"))
            let spec = try divided(told, entry, grid: (edge + size - 1) / size)
            let made = Views(try made(entry), spec, most: entry.number("most"))
            XCTAssertEqual([made.rows, made.columns], entry.at("grid").numbers, entry.written)
            XCTAssertEqual(digest(made.pixels.flatMap { $0 }), entry.string("sha256"), entry.written)
        }
        for grid in [1, 3, 5] {
            assertThrows(.bundle, "views") { _ = try divided(told, found[0], grid: grid) }
        }
    }

    private func divided(_ told: Json, _ entry: Json, grid: Int) throws -> ImageSpec {
        let views = Json.object([Json.Member("grid", .whole(grid)), Json.Member("image_tokens", .null)])
        let own = [
            Json.Member("fit", .text("long_edge")), Json.Member("resample", .text("lanczos")),
            Json.Member("views", views),
        ]
        return try ImageSpec(Fields(.object((told.members ?? []) + (entry.members ?? []) + own), "image"))
    }

    func testADivisionThatIsNotReadIsOneView() throws {
        let told = try json("GOLDEN", "images.json")
        let views = Json.object([Json.Member("grids", .list([])), Json.Member("image_tokens", .null)])
        let own = (told.items("images")[0].members ?? []) + [Json.Member("views", views)]
        XCTAssertNil(try ImageSpec(Fields(.object((told.members ?? []) + own), "image")).views)
    }

    func testASquareThatWouldTakeGigabytesIsRefused() throws {
        let told = try json("GOLDEN", "images.json")
        let own = (told.items("images")[0].members ?? []).filter { $0.name != "size" }
        let large = (told.members ?? []) + own + [Json.Member("size", .whole(4097))]
        assertThrows(.bundle, "size 4097") { _ = try ImageSpec(Fields(.object(large), "image")) }
    }

    func testAPictureWithoutPixelsIsRefused() {
        assertThrows(.image, "0 × 5") { _ = try Picture(width: 0, height: 5, rgb: []) }
        assertThrows(.image, "7 bytes") { _ = try Picture(width: 1, height: 2, rgb: [UInt8](repeating: 0, count: 7)) }
    }

    /// FIPS 180-4's own examples, and lengths around a block's.
    func testTheDigestIsTheStandards() {
        func hash(_ text: String) -> String { Bytes(text).withUnsafeBytes { Sha256.of($0) } }
        XCTAssertEqual(hash(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        XCTAssertEqual(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        let long = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
        XCTAssertEqual(hash(long), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
        let million = String(repeating: "a", count: 1_000_000)
        XCTAssertEqual(hash(million), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
        var parts = Sha256()
        for count in [1, 62, 1, 63, 64, 65, 200] {
            [UInt8](repeating: 97, count: count).withUnsafeBytes { parts.update($0) }
        }
        XCTAssertEqual(parts.finish(), hash(String(repeating: "a", count: 456)))
    }

    /// As `tests/golden/write.py` makes it.
    private func made(_ entry: Json) throws -> Picture {
        let (width, height) = (entry.number("width"), entry.number("height"))
        let hard = entry.at("hard").flag == true
        var x = UInt32(entry.number("seed"))
        let rgb = (0..<3 * width * height).map { _ -> UInt8 in
            x = x &* 1_664_525 &+ 1_013_904_223
            return hard ? (x >> 31 == 1 ? 255 : 0) : UInt8(x >> 24)
        }
        return try Picture(width: width, height: height, rgb: rgb)
    }
}
