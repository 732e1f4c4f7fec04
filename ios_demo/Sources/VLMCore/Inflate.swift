// DEFLATE (RFC 1951), decompressed in pieces: no system's library of it is on all systems.

/// A prefix code, as a table of all that the next bits can be: a symbol above four bits of its length; 0 is none.
private struct Codes {
    let width: Int
    let table: [UInt16]

    /// `lengths`: of each symbol's code; 0: it has none. Nil where codes overlap, or leave a gap beside more than one.
    init?(_ lengths: some Collection<UInt8>) {
        let longest = Int(lengths.max() ?? 0)
        width = max(longest, 1)
        var made = [UInt16](repeating: 0, count: 1 << width)
        var (code, used) = (0, 0)
        for length in 1...width {
            for (symbol, own) in lengths.enumerated() where Int(own) == length {
                if code >= 1 << length { return nil }
                // The first bit of a code comes first, and the lowest bits are read first.
                var place = Int(UInt16(code).reversed) >> (16 - length)
                while place < made.count {
                    made[place] = UInt16(symbol << 4 | length)
                    place += 1 << length
                }
                (code, used) = (code + 1, used + 1)
            }
            code <<= 1
        }
        if code != 1 << (width + 1), used > 1 { return nil }
        table = made
    }
}

extension UInt16 {
    fileprivate var reversed: UInt16 { (0..<16).reduce(0) { $0 << 1 | (self >> $1 & 1) } }
}

struct Inflate {
    /// What no compressor wrote.
    struct Damage: Error { let why: String }

    private static let window = 32_768
    private static let chunk = 1 << 18
    private static let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
    private static let lengths: [(base: Int, extra: Int)] = steps(from: 3, first: 8, each: 4, count: 28) + [(258, 0)]
    private static let distances = steps(from: 1, first: 4, each: 2, count: 30)
    private static let plain = Codes(
        (0..<288).map { $0 < 144 ? 8 : $0 < 256 ? 9 : $0 < 280 ? 7 : 8 })

    private let input: UnsafeBufferPointer<UInt8>
    private let most: Int
    private let emit: (UnsafeRawBufferPointer) throws -> Void
    private var at = 0
    private var bits: UInt64 = 0
    private var held = 0
    private var out: [UInt8] = []
    private var given = 0  // of `out`
    private var dropped = 0  // before `out`

    /// All of `input`, in pieces, to `emit`; as many bytes as `size` says, or Damage is thrown.
    static func run(
        _ input: UnsafeBufferPointer<UInt8>,
        size: Int,
        emit: (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        try withoutActuallyEscaping(emit) { emit in
            var own = Inflate(input: input, most: size, emit: emit)
            own.out.reserveCapacity(window + chunk + 512)
            while try own.block() {}
            try own.give()
            if own.dropped + own.out.count != size { throw Damage(why: "it ends early") }
        }
    }

    private init(
        input: UnsafeBufferPointer<UInt8>,
        most: Int,
        emit: @escaping (UnsafeRawBufferPointer) throws -> Void
    ) {
        (self.input, self.most, self.emit) = (input, most, emit)
    }

    /// Bases and extra bits: `first` symbols without any, then `each` symbols with one more.
    private static func steps(from start: Int, first: Int, each: Int, count: Int) -> [(base: Int, extra: Int)] {
        var base = start
        return (0..<count).map { symbol in
            let extra = symbol < first ? 0 : (symbol - first) / each + 1
            defer { base += 1 << extra }
            return (base, extra)
        }
    }

    /// False after the last one.
    private mutating func block() throws -> Bool {
        let last = try take(1) == 1
        switch try take(2) {
        case 0: try stored()
        case 1:
            guard let plain = Inflate.plain, let flat = Codes([UInt8](repeating: 5, count: 30 + 2)) else { break }
            try packed(plain, flat)
        case 2:
            let (symbols, distances) = try codes()
            try packed(symbols, distances)
        default: throw Damage(why: "a block is of no kind")
        }
        return !last
    }

    private mutating func stored() throws {
        _ = try take(held & 7)
        let (length, inverse) = (try take(16), try take(16))
        if length != ~inverse & 0xFFFF { throw Damage(why: "a block's length is damaged") }
        for _ in 0..<length { try put(UInt8(take(8))) }
    }

    private mutating func codes() throws -> (Codes, Codes) {
        let (symbols, distances, count) = (try take(5) + 257, try take(5) + 1, try take(4) + 4)
        var own = [UInt8](repeating: 0, count: 19)
        for place in 0..<count { own[Inflate.order[place]] = UInt8(try take(3)) }
        guard let code = Codes(own) else { throw Damage(why: "a block's codes overlap") }
        var lengths: [UInt8] = []
        while lengths.count < symbols + distances {
            let symbol = try next(code)
            switch symbol {
            case 0..<16: lengths.append(UInt8(symbol))
            case 16:
                guard let before = lengths.last else { throw Damage(why: "a block repeats nothing") }
                lengths += [UInt8](repeating: before, count: try take(2) + 3)
            default:
                lengths += [UInt8](repeating: 0, count: symbol == 17 ? try take(3) + 3 : try take(7) + 11)
            }
        }
        guard lengths.count == symbols + distances, let first = Codes(lengths[..<symbols]),
            let second = Codes(lengths[symbols...])
        else { throw Damage(why: "a block's codes overlap") }
        return (first, second)
    }

    private mutating func packed(_ symbols: Codes, _ places: Codes) throws {
        while true {
            let symbol = try next(symbols)
            if symbol < 256 {
                try put(UInt8(symbol))
                continue
            }
            if symbol == 256 { return }
            if symbol - 257 >= Inflate.lengths.count { throw Damage(why: "a length is of no kind") }
            let (base, extra) = Inflate.lengths[symbol - 257]
            let length = base + (try take(extra))
            let place = try next(places)
            if place >= Inflate.distances.count { throw Damage(why: "a distance is of no kind") }
            let distance = Inflate.distances[place].base + (try take(Inflate.distances[place].extra))
            if distance > out.count { throw Damage(why: "it begins before its beginning") }
            for _ in 0..<length { try put(out[out.count - distance]) }
        }
    }

    private mutating func put(_ byte: UInt8) throws {
        if dropped + out.count == most { throw Damage(why: "it holds more than it says") }
        out.append(byte)
        if out.count == Inflate.window + Inflate.chunk { try give() }
    }

    /// Hands on what was not, and keeps what may be looked back at.
    private mutating func give() throws {
        try out.withUnsafeBytes { try emit(UnsafeRawBufferPointer(rebasing: $0[given...])) }
        if out.count > Inflate.window {
            dropped += out.count - Inflate.window
            out.removeFirst(out.count - Inflate.window)
        }
        given = out.count
    }

    private mutating func fill() {
        while held <= 56, at < input.count {
            bits |= UInt64(input[at]) << UInt64(held)
            (at, held) = (at + 1, held + 8)
        }
    }

    private mutating func take(_ count: Int) throws -> Int {
        if count == 0 { return 0 }
        if held < count { fill() }
        if held < count { throw Damage(why: "it ends early") }
        let found = Int(bits & (1 << UInt64(count) - 1))
        bits >>= UInt64(count)
        held -= count
        return found
    }

    private mutating func next(_ codes: Codes) throws -> Int {
        if held < codes.width { fill() }
        let entry = codes.table[Int(bits & (1 << UInt64(codes.width) - 1))]
        let length = Int(entry & 15)
        if length == 0 || length > held { throw Damage(why: length == 0 ? "a code is of no symbol" : "it ends early") }
        bits >>= UInt64(length)
        held -= length
        return Int(entry >> 4)
    }
}
