// Fields of an object: what is missing or of another type is an error that names it.

struct Fields {
    private let told: Json
    private let place: String

    /// `place`: what errors call the object. Throws where it is none.
    init(_ told: Json, _ place: String) throws {
        if told.members == nil { throw EdgeError.bundle("\(place) is no object") }
        self.told = told
        self.place = place
    }

    func has(_ name: String) -> Bool { told[name] != nil }

    func value(_ name: String) throws -> Json {
        guard let found = told[name] else { throw fail("lacks \(name)") }
        return found
    }

    func text(_ name: String) throws -> String { try one(name) { $0.text } }

    func flag(_ name: String) throws -> Bool { try one(name) { $0.flag } }

    func number(_ name: String) throws -> Double { try one(name) { $0.number } }

    /// From 1 to 2³¹ − 1.
    func count(_ name: String) throws -> Int { try one(name) { $0.id.flatMap { $0 < 1 ? nil : $0 } } }

    func size(_ name: String) throws -> Int { try one(name) { $0.whole.flatMap { $0 < 0 ? nil : $0 } } }

    func id(_ name: String) throws -> Int { try one(name) { $0.id } }

    func fields(_ name: String) throws -> Fields {
        let inner = try one(name) { $0.members == nil ? nil : $0 }
        return try Fields(inner, "\(place).\(name)")
    }

    func texts(_ name: String) throws -> [String] { try list(name) { $0.text } }

    func ids(_ name: String) throws -> [Int] { try list(name) { $0.id } }

    func numbers(_ name: String) throws -> [Double] { try list(name) { $0.number } }

    /// Numbers by name.
    func table(_ name: String) throws -> [String: Double] {
        var found: [String: Double] = [:]
        for member in try one(name, { $0.members }) {
            guard let number = member.value.number else { throw odd(name) }
            found[member.name] = number
        }
        return found
    }

    /// Each item as `read` has it; nil where it is none.
    func list<T>(_ name: String, _ read: (Json) -> T?) throws -> [T] {
        try one(name) { $0.list }.map { item in
            guard let found = read(item) else { throw odd(name) }
            return found
        }
    }

    func objects(_ name: String) throws -> [Fields] {
        try list(name) { $0.members == nil ? nil : $0 }.map { try Fields($0, "\(place).\(name)") }
    }

    func odd(_ name: String) -> EdgeError { fail("has \(name) \((told[name] ?? .null).written.prefix(80))") }

    func fail(_ why: String) -> EdgeError { .bundle("\(place) \(why)") }

    private func one<T>(_ name: String, _ read: (Json) -> T?) throws -> T {
        guard let found = read(try value(name)) else { throw odd(name) }
        return found
    }
}
