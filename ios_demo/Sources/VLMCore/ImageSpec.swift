// What a manifest says of images, and of the decoder's sizes.

/// How an image becomes pixels.
public struct ImageSpec: Sendable {
    enum Fit: String {
        case pad, crop, stretch
        case longEdge = "long_edge"
    }

    enum Resample: String { case bicubic, bilinear, lanczos }

    static let longestEdge = 8192
    static let largestSize = 4096  // pixels of more would take more memory than a device has

    public let size: Int
    let fit: Fit
    let background: [UInt8]
    let resample: Resample
    let mean: [Double]
    let std: [Double]
    /// Pixels; of `longEdge` alone.
    let longEdge: Int?
    /// Nil: as one view.
    let views: ViewsSpec?

    init(_ told: Fields) throws {
        size = try told.count("size")
        if size > ImageSpec.largestSize { throw told.odd("size") }
        guard let fit = Fit(rawValue: try told.text("fit")) else { throw told.odd("fit") }
        guard let resample = Resample(rawValue: try told.text("resample")) else { throw told.odd("resample") }
        self.fit = fit
        self.resample = resample
        background = try told.list("background") { $0.whole.flatMap(UInt8.init(exactly:)) }
        mean = try told.numbers("mean")
        std = try told.numbers("std")
        longEdge = try told.has("long_edge") && !told.value("long_edge").isNull ? told.count("long_edge") : nil
        if (fit == .longEdge) != (longEdge != nil) || longEdge ?? 1 > ImageSpec.longestEdge {
            throw told.odd("long_edge")
        }
        let divided = try told.has("views") && !told.value("views").isNull ? told.fields("views") : nil
        // Other divisions: one view, as the contract says.
        views = try divided.flatMap { $0.has("grid") ? try ViewsSpec($0) : nil }
        if let views, views.grid < 2 || views.grid != ((longEdge ?? 0) + size - 1) / size { throw told.odd("views") }
        if background.count != 3 { throw told.odd("background") }
        if mean.count != 3 { throw told.odd("mean") }
        if std.count != 3 { throw told.odd("std") }
    }
}

/// How an image is divided: its longer edge into `grid` tiles or fewer, as many as `imageTokens` allow; nil: all.
public struct ViewsSpec: Sendable {
    let grid: Int
    let imageTokens: Int?

    init(_ told: Fields) throws {
        grid = try told.count("grid")
        imageTokens = try told.value("image_tokens").isNull ? nil : told.count("image_tokens")
    }
}

/// Sizes of the decoder. `context`: positions that its part was made for.
public struct DecoderSpec: Sendable {
    let layers: Int
    let kvHeads: Int
    let headDim: Int
    let hidden: Int
    let vocab: Int
    public let context: Int

    init(_ told: Fields) throws {
        layers = try told.count("layers")
        kvHeads = try told.count("kv_heads")
        headDim = try told.count("head_dim")
        hidden = try told.count("hidden")
        vocab = try told.count("vocab")
        context = try told.count("context")
    }
}
