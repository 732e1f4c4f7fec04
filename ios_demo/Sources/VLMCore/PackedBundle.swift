// A bundle in a zip archive: only what its manifest names is unpacked, and no more than that says.
import Foundation

struct PackedBundle {
    let manifest: Manifest
    private let archive: ZipArchive
    private let files: [(path: String, entry: ZipArchive.Entry)]

    /// The bundle's files may lie in a folder of the archive. Throws EdgeError.
    init(_ file: URL) throws {
        let name = file.lastPathComponent
        archive = try ZipArchive(name, readable(file, mapped: true))
        let named = archive.entries.filter { same($0.path, manifestName) || $0.path.hasSuffix("/" + manifestName) }
        guard let first = named.min(by: { $0.path.utf8.count < $1.path.utf8.count }) else {
            throw EdgeError.bundle("there is no \(manifestName) in \(name)", hint: "choose the zip of a bundle")
        }
        manifest = try Manifest(archive.content(first, most: ModelBundle.largestManifest))
        let folder = first.path.dropLast(manifestName.count)
        let entries = Dictionary(archive.entries.map { (Bytes($0.path), $0) }) { first, _ in first }
        let packed = try manifest.files.map { told in
            guard let entry = entries[Bytes(folder + told.path)] else {
                throw EdgeError.bundle("the archive lacks \(told.path)")
            }
            if entry.size != told.bytes {
                throw EdgeError.bundle("\(told.path) has \(entry.size) bytes, not \(told.bytes): was it packed whole?")
            }
            return (told.path, entry)
        }
        files = [(manifestName, first)] + packed
    }

    /// The manifest has checked the paths: all lie inside `folder`. Throws EdgeError, and what cannot be written.
    func unpack(to folder: URL, _ stop: Stop) throws {
        for (path, entry) in files {
            let target = folder.appendingPathComponent(path)
            try FileManager.default.createDirectory(
                at: target.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data().write(to: target)
            let out = try FileHandle(forWritingTo: target)
            defer { try? out.close() }
            try archive.read(entry) { bytes in
                try stop.check()
                try out.write(contentsOf: Data(bytes))
            }
        }
    }
}
