// Text to token ids and back, on the tokenizer.json of a bundle: BPE with byte fallback, and byte-level BPE.
import Foundation

private let file = "tokenizer.json"

/// Takes all text as text: a special token that a user types is spelled out. Decoding skips special ids.
public struct Tokenizer: Sendable {
    private let pieces: [Bytes?]
    private let special: Set<Int>
    private let raw: AddedTokens  // found in the text as it is
    private let normalised: AddedTokens  // found in normalised text
    private let normaliser: Normaliser
    private let words: Words
    private let wordsWithin: Words
    private let bpe: Bpe
    private let byteLevel: Bool
    private let stripsSpace: Bool

    /// Throws EdgeError when the file is damaged, or of a kind that is not read.
    public init(_ json: some Sequence<UInt8>) throws {
        let root = try Tokenizer.parsed(json)
        let told = try Fields(root, file)
        let model = try Fields(told.value("model"), "the model of \(file)")
        let vocab = try Tokenizer.vocab(model)
        let added = told.has("added_tokens") ? try told.objects("added_tokens").map(AddedToken.init) : []
        (pieces, special) = try Tokenizer.pieces(vocab, added)
        let normaliser = try Normaliser(root["normalizer"])
        self.normaliser = normaliser
        raw = AddedTokens(added.filter { !$0.normalized })
        normalised = AddedTokens(added.filter(\.normalized), spelled: normaliser.apply)
        words = try Words(root["pre_tokenizer"])
        wordsWithin = try Words(root["pre_tokenizer"].map(Tokenizer.within))
        let rules = BpeRules(root["model"] ?? .null, vocab)
        bpe = try Bpe(vocab, merges: model.list("merges", Tokenizer.merge), rules: rules)
        let decoder = steps(root["decoder"], "decoders")
        let types = decoder.map { $0["type"]?.text ?? "" }
        byteLevel = types.contains("ByteLevel")
        if !byteLevel && !types.contains("ByteFallback") { throw refused("has the decoder \(types)") }
        stripsSpace = decoder.contains { $0["type"]?.text == "Strip" && $0["start"]?.whole != 0 }
    }

    /// One more than the largest id.
    var size: Int { pieces.count }

    /// No special ids are added. `start`: whether the text stands where one begins; some tokenizers put a space before
    /// such a text only.
    public func encode(_ text: String, start: Bool = true) -> [Int] {
        let cut = start ? words : wordsWithin
        var out: [Int] = []
        var begins = true
        raw.split(Bytes(text)) { outer, id in
            if let id {
                out.append(id)
            } else {
                normalised.split(normaliser.apply(outer)) { inner, id in
                    if let id {
                        out.append(id)
                    } else {
                        for word in cut.cut(inner, begins: begins) { bpe.encode(word, into: &out) }
                    }
                    begins = false
                }
            }
            begins = false
        }
        return out
    }

    public func decode(_ ids: [Int]) -> String {
        var stream = stream()
        return ids.map { stream.push($0) }.joined() + stream.finish()
    }

    /// Tokens in, text out, as soon as its characters are whole.
    func stream() -> TextStream { TextStream(spelling, stripsSpace: stripsSpace) }

    private func spelling(_ id: Int) -> Bytes {
        guard pieces.indices.contains(id), let piece = pieces[id], !special.contains(id) else { return [] }
        if byteLevel { return ByteLevel.bytes(piece) ?? piece }
        if piece.count == 6, piece.starts(with: Bytes("<0x")), piece[5] == UInt8(ascii: ">"),
            let high = digit(piece[3]),
            let low = digit(piece[4])
        {
            return [high << 4 | low]
        }
        return piece.replacing(Bytes("▁"), with: Bytes(" "))
    }

    private static func parsed(_ json: some Sequence<UInt8>) throws -> Json {
        do {
            return try JsonReader.parse(json)
        } catch let error as JsonError {
            throw EdgeError.bundle("\(file) is no JSON \(error.reason)")
        }
    }

    /// Of a model that is read.
    private static func vocab(_ model: Fields) throws -> [Bytes: Int] {
        let type = try model.value("type")
        if type.text != "BPE" { throw refused("has a model of the type \(type.written)") }
        for name in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] where model.has(name) {
            let value = try model.value(name)
            if !value.isNull && value.text != "" { throw refused("has a model with \(name) \(value.written)") }
        }
        guard let members = try model.value("vocab").members else { throw model.odd("vocab") }
        var vocab: [Bytes: Int] = [:]
        vocab.reserveCapacity(members.count)
        for member in members {
            guard let id = member.value.id else { throw EdgeError.bundle("\(file) has no id for \(member.name)") }
            vocab[Bytes(member.name)] = id
        }
        return vocab
    }

    /// Throws EdgeError where ids leave gaps that only a damaged file has.
    private static func pieces(_ vocab: [Bytes: Int], _ added: [AddedToken]) throws -> ([Bytes?], Set<Int>) {
        let size = 1 + max(vocab.values.max() ?? -1, added.map(\.id).max() ?? -1)
        let count = vocab.count + added.count
        if size > 4 * count + 1024 { throw EdgeError.bundle("\(file) has the id \(size - 1) among \(count) tokens") }
        var pieces = [Bytes?](repeating: nil, count: size)
        for (piece, id) in vocab { pieces[id] = piece }
        for token in added { pieces[token.id] = token.content }
        return (pieces, Set(added.filter(\.special).map(\.id)))
    }

    /// The pre-tokenizer of a text that does not begin one.
    private static func within(_ told: Json) -> Json {
        switch told {
        case .object(let members):
            .object(
                members.map { member in
                    let first = member.name == "prepend_scheme" && member.value.text == "first"
                    return Json.Member(member.name, first ? .text("never") : within(member.value))
                })
        case .list(let items): .list(items.map(within))
        default: told
        }
    }

    private static func merge(_ told: Json) -> (Bytes, Bytes)? {
        if let text = told.text {
            let bytes = Bytes(text)
            guard let space = bytes.firstIndex(of: 0x20) else { return nil }
            return (Bytes(bytes[..<space]), Bytes(bytes[(space + 1)...]))
        }
        guard let parts = told.list?.compactMap(\.text), parts.count == 2 else { return nil }
        return (Bytes(parts[0]), Bytes(parts[1]))
    }
}

/// Of a hexadecimal number.
private func digit(_ byte: UInt8) -> UInt8? {
    byte < 0x80 ? Character(Unicode.Scalar(byte)).hexDigitValue.map(UInt8.init) : nil
}
