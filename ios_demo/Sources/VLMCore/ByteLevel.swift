// The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the other bytes for U+0100 and on.

enum ByteLevel {
    private static let scalars: [Unicode.Scalar] = {
        var shifted: UInt32 = 0x100
        return (0..<256).map { byte in
            if (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte) {
                return Unicode.Scalar(UInt8(byte))
            }
            defer { shifted += 1 }
            return Unicode.Scalar(shifted) ?? "\u{FFFD}"
        }
    }()
    private static let spellings = scalars.map { Bytes(String($0)) }
    private static let byte = Dictionary(uniqueKeysWithValues: scalars.enumerated().map { ($1, UInt8($0)) })

    static func spelled(_ text: Bytes) -> Bytes { text.flatMap { spellings[Int($0)] } }

    /// Nil where a character is none of the alphabet.
    static func bytes(_ piece: Bytes) -> Bytes? {
        let scalars = piece.text.unicodeScalars
        let found = scalars.compactMap { byte[$0] }
        return found.count == scalars.count ? found : nil
    }
}
