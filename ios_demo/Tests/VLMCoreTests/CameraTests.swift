// What lies behind a camera: its pixels, and that the latest frame wins.
import XCTest

@testable import VLMCore

final class CameraTests: XCTestCase {
    func testPixelsOfFourBytesInLongRowsBecomeAPicture() throws {
        let bytes: [UInt8] = [3, 2, 1, 0, 6, 5, 4, 0, 99, 99, 9, 8, 7, 0, 12, 11, 10, 0]
        let made = try Picture(width: 2, height: 2, order: .bgrx, bytes, bytesPerRow: 10)
        XCTAssertEqual(made.rgb, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
        let other = try Picture(width: 1, height: 1, order: .rgbx, bytes, bytesPerRow: 4)
        XCTAssertEqual(other.rgb, [3, 2, 1])
        assertThrows(.image, "18 bytes") { _ = try Picture(width: 2, height: 2, order: .bgrx, bytes, bytesPerRow: 11) }
    }

    func testTheLatestFrameWins() async {
        let frames = Latest<Int>()
        (1...3).forEach(frames.put)
        let first = await frames.take()
        XCTAssertEqual(first, 3)
        XCTAssertEqual(frames.dropped, 2)
        async let waited = frames.take()
        try? await Task.sleep(for: .milliseconds(5))
        frames.put(4)
        let second = await waited
        XCTAssertEqual(second, 4)
        async let replaced = frames.take()
        try? await Task.sleep(for: .milliseconds(5))
        async let replacing = frames.take()
        let nothing = await replaced
        XCTAssertNil(nothing)
        frames.end()
        let ended = await replacing
        XCTAssertNil(ended)
        frames.put(5)
        let last = await frames.take()
        XCTAssertNil(last)
    }
}
