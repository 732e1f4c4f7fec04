// Safetensors: named arrays in one file, all of which is checked before anything is allocated.
import Foundation

enum Safetensors {
    private static let widths = ["F32": 4, "F16": 2, "I32": 4, "I64": 8, "I8": 1, "U8": 1]
    private static let largestHeader = 1 << 20

    /// Throws EdgeError.
    static func read(_ name: String, _ data: Data) throws -> [String: Numbers] {
        func damaged(_ why: String) -> EdgeError { .bundle("\(name) is damaged: \(why)") }
        if data.count < 8 { throw damaged("it has \(data.count) bytes") }
        let length = data.withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) }
        if length > min(data.count - 8, largestHeader) { throw damaged("a header of \(length) bytes") }
        let start = 8 + Int(length)
        let header: Json
        do {
            header = try JsonReader.parse(data[data.startIndex + 8..<data.startIndex + start], unique: true)
        } catch let error as JsonError {
            throw damaged(error.reason)
        }
        guard let members = header.members else { throw damaged("its header is no object") }
        let entries = try members.filter { !same($0.name, "__metadata__") }
            .map { member in
                guard let entry = Entry(member) else {
                    throw damaged("\(member.name) is \(member.value.written.prefix(120))")
                }
                return entry
            }
            .sorted { ($0.start, $0.end) < ($1.start, $1.end) }
        var position = 0
        for entry in entries {
            if entry.start != position {
                throw damaged("\(entry.name) begins at byte \(entry.start), not \(position)")
            }
            guard Numbers.bytes(entry.shape, width: entry.width) == entry.end - entry.start else {
                throw damaged("\(entry.name) of the shape \(entry.shape) lies in bytes \(entry.start) to \(entry.end)")
            }
            position = entry.end
        }
        if position != data.count - start {
            throw damaged("its tensors take \(position) bytes of \(data.count - start)")
        }
        let found = entries.map {
            ($0.name, Numbers(dtype: $0.dtype, shape: $0.shape, data: data, offset: start + $0.start))
        }
        return Dictionary(found) { first, _ in first }
    }

    private struct Entry {
        let name: String
        let dtype: String
        let width: Int
        let shape: [Int]
        let start: Int
        let end: Int

        init?(_ member: Json.Member) {
            func counts(_ field: String) -> [Int]? {
                guard let items = member.value[field]?.list else { return nil }
                let found = items.compactMap(\.whole).filter { $0 >= 0 }
                return found.count == items.count ? found : nil
            }
            guard member.value.members?.count == 3, let dtype = member.value["dtype"]?.text, let width = widths[dtype],
                let shape = counts("shape"), shape.count <= 8, let ends = counts("data_offsets"), ends.count == 2,
                ends[0] <= ends[1]
            else { return nil }
            (name, self.dtype, self.width, self.shape) = (member.name, dtype, width, shape)
            (start, end) = (ends[0], ends[1])
        }
    }
}
