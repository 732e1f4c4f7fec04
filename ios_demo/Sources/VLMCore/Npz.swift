// NumPy's .npz: a zip of .npy files, not compressed, as schema 1 keeps its golden sample.
import Foundation

enum Npz {
    private static let dtypes = ["|u1": "U8", "<f4": "F32", "<i4": "I32"]

    /// Arrays under safetensors' names of types. Throws EdgeError.
    static func read(_ name: String, _ data: Data) throws -> [String: Numbers] {
        var found: [String: Numbers] = [:]
        for entry in try entries(name, data) {
            let array = try Npy.read(entry.name, Data(data[entry.range]))
            let own = entry.name.hasSuffix(".npy") ? String(entry.name.dropLast(4)) : entry.name
            found[own] = Numbers(
                dtype: dtypes[array.dtype] ?? array.dtype, shape: array.shape, data: array.data, offset: array.offset)
        }
        return found
    }

    /// By the central directory, which stands at the end.
    private static func entries(_ name: String, _ data: Data) throws -> [(name: String, range: Range<Int>)] {
        func damaged(_ why: String) -> EdgeError { .bundle("\(name) is damaged: \(why)") }
        func number(_ at: Int, _ width: Int) throws -> Int {
            if at < 0 || at > data.count - width { throw damaged("it ends early") }
            return data[data.startIndex + at..<data.startIndex + at + width].reversed().reduce(0) { $0 << 8 | Int($1) }
        }
        let end = data.count - 22  // NumPy writes no comment behind it
        guard end >= 0, try number(end, 4) == 0x0605_4b50 else { throw damaged("it is no zip archive") }
        var at = try number(end + 16, 4)
        return try (0..<number(end + 10, 2)).map { _ in
            if try number(at, 4) != 0x0201_4b50 { throw damaged("its list of files is cut") }
            let (method, size) = (try number(at + 10, 2), try number(at + 24, 4))
            let (length, extra, comment) = (try number(at + 28, 2), try number(at + 30, 2), try number(at + 32, 2))
            let place = try number(at + 42, 4)
            _ = try number(at + 46, length)
            let entry = String(
                decoding: data[data.startIndex + at + 46..<data.startIndex + at + 46 + length], as: UTF8.self)
            let start = try place + 30 + number(place + 26, 2) + number(place + 28, 2)
            if method != 0 { throw damaged("\(entry) is compressed") }
            if size > data.count - start { throw damaged("\(entry) ends early") }
            at += 46 + length + extra + comment
            return (entry, data.startIndex + start..<data.startIndex + start + size)
        }
    }
}
