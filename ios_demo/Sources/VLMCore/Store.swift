// Bundles on this device: imported beside their place, checked, and only then put into it.
import Foundation

/// One folder for each bundle. Made when the app starts: it clears what a killed one left.
public struct Store: Sendable {
    private let root: URL
    private static let partial = ".part-"  // before a name, which never begins with a dot: an import that goes on
    private static let replaced = ".old-"

    /// Throws EdgeError where the folder cannot be made.
    public init(_ root: URL) throws {
        self.root = root
        let files = FileManager.default
        do {
            try files.createDirectory(at: root, withIntermediateDirectories: true)
            for name in try files.contentsOfDirectory(atPath: root.path) {
                let left = root.appendingPathComponent(name)
                let place = root.appendingPathComponent(String(name.dropFirst(Store.replaced.count)))
                if name.hasPrefix(Store.partial) {
                    try files.removeItem(at: left)
                } else if name.hasPrefix(Store.replaced) {
                    if files.fileExists(atPath: place.path) {
                        try files.removeItem(at: left)
                    } else {
                        try files.moveItem(at: left, to: place)
                    }
                }
            }
        } catch {
            throw EdgeError.bundle("the bundles cannot be reached: \(error.localizedDescription)", hint: "restart")
        }
    }

    /// By name. Those that do not open are left out.
    public var bundles: [ModelBundle] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: root.path)) ?? []
        return names.sorted().compactMap { try? ModelBundle(root.appendingPathComponent($0)) }
    }

    /// Copies what the manifest of a folder names, checks all of it, and lets it take the old one's place. Throws
    /// EdgeError.
    public func add(
        _ name: String,
        from folder: URL,
        engines: [any Engine],
        stop: Stop = Stop(),
        progress: (Double) -> Void = { _ in }
    ) throws -> ModelBundle {
        let offered = try ModelBundle(Store.found(folder))
        try Store.require(offered.manifest, engines)
        return try taken(name, stop, progress) { try Store.copy(offered, to: $0, stop) }
    }

    /// The same of a zip archive, whose files may lie in one folder of it.
    public func add(
        _ name: String,
        fromZip file: URL,
        engines: [any Engine],
        stop: Stop = Stop(),
        progress: (Double) -> Void = { _ in }
    ) throws -> ModelBundle {
        let offered = try PackedBundle(file)
        try Store.require(offered.manifest, engines)
        return try taken(name, stop, progress) { try offered.unpack(to: $0, stop) }
    }

    /// Writes into a folder beside, checks all of it, and lets it take the old one's place.
    private func taken(
        _ name: String,
        _ stop: Stop,
        _ progress: (Double) -> Void,
        _ write: (URL) throws -> Void
    ) throws -> ModelBundle {
        let partial = root.appendingPathComponent(Store.partial + Store.clean(name))
        defer { try? FileManager.default.removeItem(at: partial) }
        do {
            try? FileManager.default.removeItem(at: partial)
            try write(partial)
        } catch let error as EdgeError {
            throw error
        } catch {
            throw EdgeError.bundle(
                "the bundle could not be copied: \(error.localizedDescription)", hint: "free some storage")
        }
        try ModelBundle(partial).check { share in
            try stop.check()
            progress(share)
        }
        return try ModelBundle(put(partial, root.appendingPathComponent(Store.clean(name))))
    }

    /// Throws EdgeError.
    public func remove(_ bundle: ModelBundle) throws {
        do {
            try FileManager.default.removeItem(at: bundle.folder)
        } catch {
            throw EdgeError.bundle("\(bundle.folder.lastPathComponent) cannot be removed", hint: "restart")
        }
    }

    /// The folder itself, or the only one in it that has a manifest.
    private static func found(_ folder: URL) -> URL {
        if fileSize(folder.appendingPathComponent(manifestName)) != nil { return folder }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        let inner = names.map { folder.appendingPathComponent($0) }
            .filter { fileSize($0.appendingPathComponent(manifestName)) != nil }
        return inner.count == 1 ? inner[0] : folder
    }

    private static func require(_ manifest: Manifest, _ engines: [any Engine]) throws {
        if engines.contains(where: { (try? $0.require(manifest)) != nil }) { return }
        try engines.first?.require(manifest)
    }

    private static func clean(_ name: String) -> String {
        let allowed = name.unicodeScalars.map { scalar -> Character in
            let kept = scalar.isASCII && (scalar.properties.isAlphabetic || scalar.properties.numericType != nil)
            return kept || "._-".unicodeScalars.contains(scalar) ? Character(scalar) : "-"
        }
        let short = String(allowed).trimmingCharacters(in: ["."]).prefix(60).drop { $0 == "." }
        return short.isEmpty ? "bundle" : String(short)
    }

    private static func copy(_ bundle: ModelBundle, to place: URL, _ stop: Stop) throws {
        let files = FileManager.default
        for path in [manifestName] + bundle.manifest.files.map(\.path) {
            try stop.check()
            let target = place.appendingPathComponent(path)
            try files.createDirectory(at: target.deletingLastPathComponent(), withIntermediateDirectories: true)
            try files.copyItem(at: bundle.folder.appendingPathComponent(path).resolvingSymlinksInPath(), to: target)
        }
    }

    private func put(_ partial: URL, _ place: URL) throws -> URL {
        let files = FileManager.default
        let old = root.appendingPathComponent(Store.replaced + place.lastPathComponent)
        do {
            try? files.removeItem(at: old)
            if files.fileExists(atPath: place.path) { try files.moveItem(at: place, to: old) }
            do {
                try files.moveItem(at: partial, to: place)
            } catch {
                if files.fileExists(atPath: old.path) { try files.moveItem(at: old, to: place) }
                throw error
            }
            try? files.removeItem(at: old)
            return place
        } catch {
            throw EdgeError.bundle("\(place.lastPathComponent) cannot be put into its place", hint: "restart")
        }
    }
}
