// Screen: which bundle and which engine, an import, the proof and the benchmark.
import AppModel
import SwiftUI
import UniformTypeIdentifiers
import VLMCore

struct ModelView: View {
    let model: DemoModel
    @State private var importing = false

    var body: some View {
        List {
            Section("Bundles") {
                ForEach(model.bundles.indices, id: \.self) { place in
                    let bundle = model.bundles[place]
                    Button(bundle.manifest.name) { model.open(bundle, EngineChoice.able(bundle).first) }
                }
                Button("Import a folder or a zip…") { importing = true }
            }
            if let opened = model.opened {
                Section("Engine") {
                    ForEach(EngineChoice.able(opened)) { choice in
                        Button(choice.rawValue + (choice == model.choice ? " ✓" : "")) { model.open(opened, choice) }
                    }
                }
                Section("On this device") {
                    Button("Prove it") { model.verify() }
                    if let report = model.report { ProofView(report: report) }
                    Button("Benchmark") { model.bench() }
                    if let benchmark = model.benchmark { ShareLink("Share bench.json", item: benchmark) }
                }
            }
            if let busy = model.busy { ProgressView(busy) }
            if let problem = model.problem { Text(problem).foregroundStyle(.red) }
        }
        .navigationTitle("Model")
        .fileImporter(isPresented: $importing, allowedContentTypes: [.folder, .zip]) { found in
            if let chosen = try? found.get() { model.add(chosen) }
        }
    }
}

struct ProofView: View {
    let report: Report

    var body: some View {
        VStack(alignment: .leading, spacing: 4) {
            Text(report.sentence).foregroundStyle(report.ok ? .green : .red)
            ForEach(report.rows.indices, id: \.self) { place in
                let row = report.rows[place]
                let measures = row.error.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
                Text("\(row.ok ? "✓" : "✗") \(row.stage), \(row.against): \(measures.joined(separator: ", "))").font(
                    .caption)
            }
        }
    }
}
