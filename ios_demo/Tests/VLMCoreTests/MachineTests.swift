// What the system tells of itself.
import VLMCore
import XCTest

final class MachineTests: XCTestCase {
    func testMemoryIsCountedInBytes() throws {
        let before = try XCTUnwrap(Machine.memory())
        let taken = [UInt8](repeating: 7, count: 64 << 20)
        let after = try XCTUnwrap(Machine.memory())
        XCTAssertGreaterThan(after - before, taken.count / 2)
        XCTAssertGreaterThan(try XCTUnwrap(Machine.peakMemory()) - before, taken.count / 2)
        XCTAssertGreaterThan(try XCTUnwrap(Machine.availableMemory()), 64 << 20)
        XCTAssertFalse(Machine.name.isEmpty)
    }
}
