// Zip archives: their list of files, and the content of each, stored or deflated. What it claims is bounded first.
import Foundation

struct ZipArchive {
    struct Entry {
        let path: String
        /// Bytes, when unpacked.
        let size: Int
        fileprivate let deflated: Bool
        fileprivate let range: Range<Int>
    }

    let entries: [Entry]
    private let name: String
    private let data: Data
    private static let mostEntries = 1000
    private static let piece = 1 << 18  // bytes: of a file of gigabytes, no more are copied at once

    /// By the list at the archive's end. Throws EdgeError.
    init(_ name: String, _ data: Data) throws {
        (self.name, self.data) = (name, data)
        let list = try ZipList(name, data)
        if list.count > ZipArchive.mostEntries {
            throw EdgeError.bundle("\(name) holds \(list.count) files, as no bundle", hint: "choose a bundle's zip")
        }
        var at = list.start
        entries = try (0..<list.count).map { _ in try list.entry(&at) }
    }

    /// Hands on the content in pieces. Throws EdgeError, and what `emit` throws.
    func read(_ entry: Entry, emit: (UnsafeRawBufferPointer) throws -> Void) throws {
        try data.withUnsafeBytes { bytes in
            let own = UnsafeRawBufferPointer(rebasing: bytes[entry.range])
            if !entry.deflated {
                for start in stride(from: 0, to: own.count, by: ZipArchive.piece) {
                    let end = min(start + ZipArchive.piece, own.count)
                    try emit(UnsafeRawBufferPointer(rebasing: own[start..<end]))
                }
                return
            }
            do {
                try Inflate.run(own.bindMemory(to: UInt8.self), size: entry.size, emit: emit)
            } catch let damage as Inflate.Damage {
                throw EdgeError.bundle("\(name) is damaged: of \(entry.path), \(damage.why)")
            }
        }
    }

    /// The whole content. Throws EdgeError, also where that has more than `most` bytes.
    func content(_ entry: Entry, most: Int) throws -> Data {
        if entry.size > most { throw EdgeError.bundle("\(name) holds \(entry.path) of \(entry.size) bytes") }
        var found = Data(capacity: entry.size)
        try read(entry) { found.append(contentsOf: $0) }
        return found
    }
}

/// The list of an archive's files: numbers are little-endian, those that do not fit in 32 bits stand in a field of their own.
private struct ZipList {
    let start: Int
    let count: Int
    private let name: String
    private let data: Data
    private static let large = 0xFFFF_FFFF

    init(_ name: String, _ data: Data) throws {
        let (start, count) = try ZipList(name, data, 0, 0).found()
        self.init(name, data, start, count)
    }

    private init(_ name: String, _ data: Data, _ start: Int, _ count: Int) {
        (self.name, self.data, self.start, self.count) = (name, data, start, count)
    }

    /// Where it begins, and of how many files it is.
    private func found() throws -> (start: Int, count: Int) {
        let least = max(0, data.count - 22 - 65_535)  // behind the end there may be a comment
        var end = data.count - 22
        while end >= least, try number(end, 4) != 0x0605_4b50 { end -= 1 }
        if end < least {
            throw EdgeError.bundle("\(name) is no zip archive, or ends early", hint: "choose a bundle's zip")
        }
        var (own, place) = (try number(end + 10, 2), try number(end + 16, 4))
        if own == 0xFFFF || place == ZipList.large, end >= 20, try number(end - 20, 4) == 0x0706_4b50 {
            let wide = try number(end - 12, 8)
            if try number(wide, 4) != 0x0606_4b50 { throw damaged("its end is cut") }
            (own, place) = (try number(wide + 32, 8), try number(wide + 48, 8))
        }
        return (place, own)
    }

    /// The one that begins at `at`, which is moved behind it.
    func entry(_ at: inout Int) throws -> ZipArchive.Entry {
        if try number(at, 4) != 0x0201_4b50 { throw damaged("its list of files is cut") }
        let (flags, method) = (try number(at + 8, 2), try number(at + 10, 2))
        let lengths = (name: try number(at + 28, 2), extra: try number(at + 30, 2), comment: try number(at + 32, 2))
        _ = try number(at + 46 + lengths.name + lengths.extra, 0)
        let first = data.startIndex + at + 46
        let path = String(decoding: data[first..<first + lengths.name], as: UTF8.self)
        // In this order in the wide field, those that are there.
        var numbers = [try number(at + 24, 4), try number(at + 20, 4), try number(at + 42, 4)]
        try widen(&numbers, at + 46 + lengths.name, lengths.extra)
        let (size, packed, place) = (numbers[0], numbers[1], numbers[2])
        if flags & 1 != 0 { throw damaged("\(path) is encrypted") }
        if method != 0 && method != 8 { throw damaged("\(path) is compressed by method \(method)") }
        let start = try place + 30 + number(place + 26, 2) + number(place + 28, 2)
        if packed > data.count - start || method == 0 && packed != size { throw damaged("\(path) ends early") }
        at += 46 + lengths.name + lengths.extra + lengths.comment
        return ZipArchive.Entry(path: path, size: size, deflated: method == 8, range: start..<start + packed)
    }

    private func widen(_ numbers: inout [Int], _ from: Int, _ length: Int) throws {
        var at = from
        while at + 4 <= from + length {
            let (kind, size) = (try number(at, 2), try number(at + 2, 2))
            if kind == 1 {
                var field = at + 4
                for place in numbers.indices where numbers[place] == ZipList.large {
                    if field + 8 > at + 4 + size { throw damaged("its list of files is cut") }
                    numbers[place] = try number(field, 8)
                    field += 8
                }
            }
            at += 4 + size
        }
    }

    /// Little-endian, of `width` bytes, from 0 to 2⁶³ − 1.
    private func number(_ at: Int, _ width: Int) throws -> Int {
        if at < 0 || at > data.count - width { throw damaged("it ends early") }
        let first = data.startIndex + at
        let found = data[first..<first + width].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard let whole = Int(exactly: found), whole < 1 << 60 else { throw damaged("it tells of \(found) bytes") }
        return whole
    }

    private func damaged(_ why: String) -> EdgeError { .bundle("\(name) is damaged: \(why)") }
}
