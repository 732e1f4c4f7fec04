// What a manifest says of the prompt: a chat template as pieces. Schema 2, and 1 as 2 spells it.

enum Slot: String { case system, content, answer, image }

enum Trim: String { case none, left, right, both }

/// What a template is made of.
enum Piece: Sendable {
    /// Tokenised together with the text beside it.
    case text(String)
    /// Token ids as they are.
    case ids([Int])
    /// A place for what is said.
    case slot(Slot, Trim)

    /// Nil where it is none.
    init?(_ told: Json) {
        guard let members = told.members else { return nil }
        let kinds = ["text", "ids", "slot"].filter { kind in members.contains { same($0.name, kind) } }
        guard kinds.count == 1, let value = told[kinds[0]] else { return nil }
        switch kinds[0] {
        case "text":
            guard let text = value.text else { return nil }
            self = .text(text)
        case "ids":
            let ids = value.list?.compactMap(\.id) ?? []
            guard !ids.isEmpty, ids.count == value.list?.count else { return nil }
            self = .ids(ids)
        default:
            guard let slot = value.text.flatMap(Slot.init), let trim = Trim(rawValue: told["trim"]?.text ?? "none")
            else { return nil }
            self = .slot(slot, trim)
        }
    }
}

/// From where a turn begins to where the answer's pieces do. `afterSystem` nil: there is no system message.
struct Questions: Sendable {
    let first: [Piece]
    let afterSystem: [Piece]?
    let later: [Piece]
}

extension Questions {
    init(_ told: Fields) throws {
        first = try told.list("first", Piece.init)
        afterSystem = try told.value("after_system").isNull ? nil : told.list("after_system", Piece.init)
        later = try told.list("later", Piece.init)
    }
}

/// What an image of several views becomes: tiles by rows, `rowEnd` behind each row, and the whole behind all.
struct ViewPieces: Sendable {
    let tiles: [[[Piece]]]
    let rowEnd: [Piece]
    let overview: [Piece]

    init(_ told: Fields) throws {
        tiles = try told.list("tiles") { row in
            ViewPieces.all(row.list) { tile in ViewPieces.all(tile.list, Piece.init) }
        }
        rowEnd = try told.list("row_end", Piece.init)
        overview = try told.list("overview", Piece.init)
    }

    /// Of an image that is divided so.
    func of(_ rows: Int, _ columns: Int) -> [Piece] {
        tiles.prefix(rows).flatMap { $0.prefix(columns).flatMap { $0 } + rowEnd } + overview
    }

    /// Nil where one of them is none.
    private static func all<T>(_ items: [Json]?, _ read: (Json) -> T?) -> [T]? {
        let found = items?.compactMap(read)
        return found?.count == items?.count ? found : nil
    }
}

public struct PromptSpec: Sendable {
    let question: Questions
    let imageQuestion: Questions?
    let image: [Piece]
    let answer: [Piece]
    let generation: [Piece]
    let defaultSystem: String
    let imageTokens: Int
    let bosId: Int?
    let restarts: Set<String>
    let endIds: [Int]
    let stopIds: Set<Int>
    let stopStrings: [String]
    /// Instead of `image`, of one that is cut.
    let views: ViewPieces?

    init(_ told: Fields) throws {
        question = try Questions(told.fields("question"))
        imageQuestion = try told.value("image_question").isNull ? nil : Questions(told.fields("image_question"))
        image = try told.list("image", Piece.init)
        answer = try told.list("answer", Piece.init)
        generation = try told.list("generation", Piece.init)
        defaultSystem = try told.text("default_system")
        imageTokens = try told.count("image_tokens")
        bosId = try told.value("bos_id").isNull ? nil : told.id("bos_id")
        restarts = Set(try told.texts("restarts"))
        endIds = try told.ids("end_ids")
        stopIds = Set(try told.ids("stop_ids"))
        stopStrings = try told.texts("stop_strings")
        views = try told.has("views") && !told.value("views").isNull ? ViewPieces(told.fields("views")) : nil
        if !restarts.isSubset(of: ["bos", "ids", "image"]) { throw told.odd("restarts") }
        if let fault { throw told.fail(fault) }
    }

    /// Of schema 1, where `system`, `user`, `assistant` and `image` are texts with one mark each.
    init(schema1 told: Fields) throws {
        func plain(_ text: String) -> [Piece] { text.isEmpty ? [] : [.text(text)] }
        func around(_ field: String, _ mark: String, _ slot: Slot) throws -> [Piece] {
            let halves = parted(try told.text(field), at: mark)
            if halves.count != 2 { throw told.odd(field) }
            return plain(halves[0]) + [.slot(slot, .none)] + plain(halves[1])
        }
        let user = try around("user", "{text}", .content)
        question = Questions(first: user, afterSystem: try around("system", "{text}", .system) + user, later: user)
        (imageQuestion, views) = (nil, nil)
        image = try around("image", "<image>", .image)
        answer = try around("assistant", "{text}", .answer)
        generation = plain(try told.text("generation"))
        defaultSystem = try told.text("default_system")
        imageTokens = try told.count("image_tokens")
        bosId = try told.value("bos_id").isNull ? nil : told.id("bos_id")
        restarts = ["bos", "ids", "image"]
        endIds = [try told.id("end_id")]
        stopIds = Set(try told.ids("stop_ids"))
        stopStrings = try told.texts("stop_strings")
        if let fault { throw told.fail(fault) }
    }

    /// Slots that are missing, or stand where nothing can fill them.
    private var fault: String? {
        func wrong(_ place: String, _ pieces: [Piece], _ expected: Slot...) -> String? {
            let slots = pieces.compactMap { if case .slot(let slot, _) = $0 { slot } else { nil } }
            return slots == expected ? nil : "has the slots of \(place) elsewhere than \(expected.map(\.rawValue))"
        }
        let asked = [question, imageQuestion].compactMap { $0 }
        var found = [wrong("image", image, .image), wrong("answer", answer, .answer), wrong("generation", generation)]
        for each in asked {
            found.append(wrong("first", each.first, .content))
            found.append(wrong("later", each.later, .content))
            found.append(each.afterSystem.flatMap { wrong("after_system", $0, .system, .content) })
            let untold = each.afterSystem == nil && !defaultSystem.isEmpty
            found.append(untold ? "has no slot for its system message" : nil)
        }
        if let views {
            found.append(wrong("views.row_end", views.rowEnd))
            found.append(wrong("views.overview", views.overview, .image))
            for tile in views.tiles.joined() { found.append(wrong("views.tiles", tile, .image)) }
            let table = Set(views.tiles.map(\.count)).count == 1
            found.append(table ? nil : "has views.tiles that are no table")
        }
        found.append(stopIds.isEmpty ? "has no stop_ids" : nil)
        return found.compactMap { $0 }.first
    }
}

/// A text cut at each place of another, by bytes.
private func parted(_ text: String, at mark: String) -> [String] {
    let (bytes, sought) = (Array(text.utf8), Array(mark.utf8))
    var found: [[UInt8]] = [[]]
    var at = 0
    while at < bytes.count {
        if bytes[at...].starts(with: sought) {
            found.append([])
            at += sought.count
        } else {
            found[found.count - 1].append(bytes[at])
            at += 1
        }
    }
    return found.map { String(decoding: $0, as: UTF8.self) }
}
