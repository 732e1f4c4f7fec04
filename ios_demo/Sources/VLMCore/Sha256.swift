// SHA-256 (FIPS 180-4), of files and of memory.
import Foundation

struct Sha256 {
    private static let rounds: [UInt32] = fractions(of: primes(64)) { cbrt($0) }
    private var state: [UInt32] = fractions(of: primes(8)) { $0.squareRoot() }
    private var held: [UInt8] = []
    private var count = 0

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        count += bytes.count
        var rest = bytes[...]
        if !held.isEmpty {
            let taken = min(64 - held.count, rest.count)
            held.append(contentsOf: rest.prefix(taken))
            rest = rest.dropFirst(taken)
            if held.count < 64 { return }
            held.withUnsafeBytes { compress($0) }
            held.removeAll()
        }
        let whole = rest.count / 64 * 64
        compress(UnsafeRawBufferPointer(rebasing: rest.prefix(whole)))
        held.append(contentsOf: rest.dropFirst(whole))
    }

    /// In hexadecimal.
    mutating func finish() -> String {
        let bits = UInt64(count) * 8
        var tail: [UInt8] = [0x80]
        while (held.count + tail.count) % 64 != 56 { tail.append(0) }
        for shift in stride(from: 56, through: 0, by: -8) {
            tail.append(UInt8(truncatingIfNeeded: bits >> UInt64(shift)))
        }
        tail.withUnsafeBytes { update($0) }
        return state.map { word in String(repeating: "0", count: 8 - digits(word).count) + digits(word) }.joined()
    }

    static func of(_ bytes: UnsafeRawBufferPointer) -> String {
        var digest = Sha256()
        digest.update(bytes)
        return digest.finish()
    }

    /// `progress` is told how many bytes were read. Throws EdgeError where the file cannot be read.
    static func of(_ file: URL, progress: (Int) throws -> Void = { _ in }) throws -> String {
        guard let stream = fopen(file.path, "rb") else { throw unreadable(file) }
        defer { fclose(stream) }
        var digest = Sha256()
        var buffer = [UInt8](repeating: 0, count: 1 << 18)
        var read = 0
        while true {
            let count = fread(&buffer, 1, buffer.count, stream)
            if count == 0 { break }
            buffer.withUnsafeBytes { digest.update(UnsafeRawBufferPointer(rebasing: $0[..<count])) }
            read += count
            try progress(read)
        }
        if ferror(stream) != 0 { throw unreadable(file) }
        return digest.finish()
    }

    private static func unreadable(_ file: URL) -> EdgeError { .bundle("\(file.lastPathComponent) cannot be read") }

    private func digits(_ word: UInt32) -> String { String(word, radix: 16) }

    private mutating func compress(_ blocks: UnsafeRawBufferPointer) {
        Sha256.rounds.withUnsafeBufferPointer { rounds in
            withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 64) { words in
                for start in stride(from: 0, to: blocks.count, by: 64) {
                    expand(blocks, start, words)
                    mix(words, rounds)
                }
            }
        }
    }

    private func expand(_ blocks: UnsafeRawBufferPointer, _ start: Int, _ words: UnsafeMutableBufferPointer<UInt32>) {
        for i in 0..<16 {
            words[i] = UInt32(bigEndian: blocks.loadUnaligned(fromByteOffset: start + 4 * i, as: UInt32.self))
        }
        for i in 16..<64 {
            let (a, b) = (words[i - 15], words[i - 2])
            let low = turned(a, 7) ^ turned(a, 18) ^ (a >> 3)
            let high = turned(b, 17) ^ turned(b, 19) ^ (b >> 10)
            words[i] = words[i - 16] &+ low &+ words[i - 7] &+ high
        }
    }

    private mutating func mix(_ words: UnsafeMutableBufferPointer<UInt32>, _ rounds: UnsafeBufferPointer<UInt32>) {
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        for i in 0..<64 {
            let chosen = (e & f) ^ (~e & g)
            let most = (a & b) ^ (a & c) ^ (b & c)
            let first = h &+ (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) &+ chosen &+ rounds[i] &+ words[i]
            let second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) &+ most
            (h, g, f, e) = (g, f, e, d &+ first)
            (d, c, b, a) = (c, b, a, first &+ second)
        }
        state[0] &+= a
        state[1] &+= b
        state[2] &+= c
        state[3] &+= d
        state[4] &+= e
        state[5] &+= f
        state[6] &+= g
        state[7] &+= h
    }

    @inline(__always)
    private func turned(_ word: UInt32, _ by: UInt32) -> UInt32 { word >> by | word << (32 - by) }

    private static func primes(_ count: Int) -> [Int] {
        var found: [Int] = []
        var next = 2
        while found.count < count {
            if found.allSatisfy({ next % $0 != 0 }) { found.append(next) }
            next += 1
        }
        return found
    }

    /// The first 32 bits of the roots' fractions: the standard's constants.
    private static func fractions(of numbers: [Int], root: (Double) -> Double) -> [UInt32] {
        numbers.map { number in
            let root = root(Double(number))
            return UInt32((root - root.rounded(.down)) * 4_294_967_296)
        }
    }
}
