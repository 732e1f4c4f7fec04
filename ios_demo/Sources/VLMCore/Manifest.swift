// Manifest of a bundle, read and bounded: `docs/bundle.md` is the contract.

/// A file of a bundle: `path` is relative, with forward slashes.
public struct FileEntry: Sendable, Hashable {
    public let path: String
    public let bytes: Int
    public let sha256: String

    init(_ told: Fields) throws {
        path = try told.text("path")
        bytes = try told.size("bytes")
        sha256 = try told.text("sha256")
        // A manifest is untrusted: under the rules of any system, the file lies inside the bundle.
        let names = path.split(omittingEmptySubsequences: false) { $0 == "/" || $0 == "\\" }
        let drive = path.utf8.dropFirst().first == UInt8(ascii: ":")
        if names[0].isEmpty || names.contains("..") || drive || path.utf8.contains(0) {
            throw EdgeError.bundle("\(manifestName) names a file outside the bundle: \(path)", hint: "do not use it")
        }
    }
}

/// An input or output; a size that varies is nil.
public struct TensorSpec: Sendable {
    public let name: String
    public let dtype: String
    public let shape: [Int?]

    init(_ told: Fields) throws {
        name = try told.text("name")
        dtype = try told.text("dtype")
        shape = try told.list("shape") { size -> Int?? in
            if let size = size.whole { size } else { size.text == nil ? nil : .some(nil) }
        }
    }
}

/// An artifact that covers one or more adjacent roles; the first of `files` is the one to open.
public struct Part: Sendable {
    public let covers: [String]
    public let format: String
    public let scheme: String
    public let files: [FileEntry]
    public let inputs: [TensorSpec]
    public let outputs: [TensorSpec]
    public let tolerance: [String: Double]
    let details: Json

    init(_ told: Fields) throws {
        covers = try told.texts("covers")
        files = try told.objects("files").map(FileEntry.init)
        tolerance = try told.table("tolerance")
        format = try told.text("format")
        scheme = try told.text("scheme")
        inputs = try told.objects("inputs").map(TensorSpec.init)
        outputs = try told.objects("outputs").map(TensorSpec.init)
        details = told.has("details") ? try told.value("details") : .null
        if covers.isEmpty || !covers.allSatisfy(["vision", "projector", "decoder"].contains) {
            throw told.odd("covers")
        }
        if files.isEmpty { throw told.odd("files") }
        if !tolerance.keys.allSatisfy(["max_abs", "cosine", "tokens"].contains) { throw told.odd("tolerance") }
    }
}

let manifestName = "manifest.json"

public struct Manifest: Sendable {
    public let schema: Int
    public let name: String
    public let recipe: String
    public let image: ImageSpec
    public let prompt: PromptSpec
    public let decoder: DecoderSpec
    public let goldenQuestion: String
    public let goldenSegments: [[Int]?]
    public let parts: [Part]
    public let tokenizer: FileEntry
    public let golden: FileEntry

    private static let own = 2
    private static let longestName = 4096

    /// Throws EdgeError on whatever is not a manifest that this reader knows.
    init(_ bytes: some Sequence<UInt8>) throws {
        let root: Json
        do {
            root = try JsonReader.parse(bytes, unique: true)
        } catch let error as JsonError {
            throw EdgeError.bundle("\(manifestName) is no JSON \(error.reason)")
        }
        let told = try Fields(root, manifestName)
        guard let schema = root["schema"]?.whole else {
            throw EdgeError.bundle("\(manifestName) carries no schema number", hint: "choose a bundle")
        }
        guard (Manifest.own - 1...Manifest.own).contains(schema) else {
            throw EdgeError.bundle(
                "the bundle has schema \(schema), and this app reads \(Manifest.own - 1) and \(Manifest.own)",
                hint: schema > Manifest.own ? "a newer version of this app" : "export the bundle again")
        }
        try self.init(told, schema: schema)
    }

    private init(_ told: Fields, schema: Int) throws {
        let prompt = try told.fields("prompt")
        let golden = try prompt.fields("golden")
        self.schema = schema
        name = try told.text("name")
        recipe = try told.text("recipe")
        if name.utf8.count > Manifest.longestName { throw told.odd("name") }
        if recipe.utf8.count > Manifest.longestName { throw told.odd("recipe") }
        image = try ImageSpec(told.fields("image"))
        self.prompt = schema == 1 ? try PromptSpec(schema1: prompt) : try PromptSpec(prompt)
        decoder = try DecoderSpec(told.fields("decoder"))
        goldenQuestion = try golden.text("question")
        goldenSegments = try golden.list("segments") { segment -> [Int]?? in
            if segment.isNull { return .some(nil) }
            guard let items = segment.list else { return nil }
            let ids = items.compactMap(\.id)
            return ids.count == items.count ? .some(ids) : nil
        }
        parts = try told.objects("parts").map(Part.init)
        tokenizer = try FileEntry(told.fields("tokenizer"))
        self.golden = try FileEntry(told.fields("golden"))
        if parts.isEmpty { throw told.odd("parts") }
        let tiles = self.prompt.views?.tiles ?? []
        if let grid = image.views?.grid, grid > min(tiles.count, tiles.first?.count ?? 0) {
            throw EdgeError.bundle("an image has \(grid) tiles a side, and the prompt no pieces for them")
        }
    }

    /// Of an image: all tiles that it may have, and the whole.
    var mostViews: Int {
        guard let views = image.views else { return 1 }
        let all = views.grid * views.grid + 1
        return views.imageTokens.map { min(all, $0 / prompt.imageTokens) } ?? all
    }

    /// Each once.
    public var files: [FileEntry] {
        var seen: Set<FileEntry> = []
        return (parts.flatMap(\.files) + [tokenizer, golden]).filter { seen.insert($0).inserted }
    }

    public var bytes: Int { files.reduce(0) { $0 + $1.bytes } }

    /// Whether it answers questions about images.
    public var sees: Bool { parts.contains { $0.covers.contains("vision") } }

    func part(_ role: String) throws -> Part {
        guard let found = parts.first(where: { $0.covers.contains(role) }) else {
            throw EdgeError.bundle("the bundle has no part for the role \(role)")
        }
        return found
    }
}
