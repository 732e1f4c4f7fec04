// An image becomes views: tiles of the vision encoder's size and the whole behind them, or the whole alone.

/// Pixels `[1, 3, size, size]` of each: rows × columns of tiles and the whole; or the whole alone, of no tiles.
struct Views {
    let pixels: [[Float]]
    let rows: Int
    let columns: Int

    /// Of an image, `most` views or fewer: where all its tiles are more, it is divided into fewer, larger ones.
    init(_ picture: Picture, _ spec: ImageSpec, most: Int) {
        guard let sizes = Views.sizes(picture, spec, most) else {
            (pixels, rows, columns) = ([VLMCore.pixels(picture, spec)], 0, 0)
            return
        }
        let side = spec.size
        let whole = sizes.reduce(picture) { resized($0, $1.width, $1.height, spec.resample) }
        let (rows, columns) = (whole.height / side, whole.width / side)
        let tiles = (0..<rows * columns).map { whole.cut(side * ($0 % columns), side * ($0 / columns), side, side) }
        let seen = tiles + [resized(whole, side, side, spec.resample)]
        (self.rows, self.columns) = (rows, columns)
        pixels = seen.map { normalised($0, spec) }
    }

    private typealias Size = (width: Int, height: Int)

    /// What an image is resized to, one after another, before it is cut; nil where no division has so few views.
    private static func sizes(_ picture: Picture, _ spec: ImageSpec, _ most: Int) -> [Size]? {
        guard let grid = spec.views?.grid, let longest = spec.longEdge else { return nil }
        for tiles in stride(from: grid, through: 2, by: -1) {
            let first = longEdge(picture.width, picture.height, tiles == grid ? longest : tiles * spec.size)
            let whole = multiples(first, spec.size)
            if whole.width / spec.size * (whole.height / spec.size) + 1 <= most { return [first, whole] }
        }
        return nil
    }

    /// Both edges a multiple of `side`: the longer is rounded up, the other follows it by their ratio, and is too.
    private static func multiples(_ size: Size, _ side: Int) -> Size {
        let ratio = Double(size.width) / Double(size.height)
        func up(_ edge: Int) -> Int { Int((Double(edge) / Double(side)).rounded(.up)) * side }
        if size.width >= size.height {
            let width = up(size.width)
            return (width, up(Int(Double(width) / ratio)))
        }
        let height = up(size.height)
        return (up(Int(Double(height) * ratio)), height)
    }
}
