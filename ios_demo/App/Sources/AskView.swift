// Screen: a photo, what was said about it, and the next question.
import AppModel
import Foundation
import PhotosUI
import SwiftUI
import UIKit
import VLMCore

struct AskView: View {
    let model: DemoModel
    @State private var question = ""
    @State private var picked: PhotosPickerItem?

    var body: some View {
        NavigationStack {
            VStack {
                ScrollView {
                    VStack(alignment: .leading, spacing: 12) {
                        PictureView(picture: model.picture)
                        ForEach(model.exchanges.indices, id: \.self) { place in
                            SaidView(question: model.exchanges[place].question, answer: model.exchanges[place].answer)
                        }
                        if let question = model.question { SaidView(question: question, answer: model.answer) }
                        Text(model.timings).font(.caption).foregroundStyle(.secondary)
                        if let problem = model.problem { Text(problem).foregroundStyle(.red) }
                    }
                    .padding()
                }
                if let busy = model.busy { ProgressView(busy) }
                HStack {
                    TextField("Ask about the photo", text: $question).textFieldStyle(.roundedBorder).onSubmit(ask)
                    if model.busy == nil {
                        Button("Ask", action: ask).disabled(model.opened == nil || question.isEmpty)
                    } else {
                        Button("Stop") { model.stop() }
                    }
                }
                .padding()
            }
            .navigationTitle(model.opened?.manifest.name ?? "Edge VLM")
            .toolbar {
                PhotosPicker("Photo", selection: $picked, matching: .images)
                NavigationLink("Camera") { CameraView(model: model) }
                NavigationLink("Model") { ModelView(model: model) }
            }
            .onChange(of: picked) { load() }
            .task {
                let warnings = UIApplication.didReceiveMemoryWarningNotification
                for await _ in NotificationCenter.default.notifications(named: warnings) { await model.trim() }
            }
        }
    }

    private func ask() {
        model.ask(question)
        question = ""
    }

    private func load() {
        guard let picked else { return }
        model.look(at: { try await picked.loadTransferable(type: Data.self) }, decode: AskView.decode)
    }

    /// A large photo takes hundreds of megabytes as it is decoded, and a model sees some 300 pixels of its edge.
    private nonisolated static func decode(_ data: Data) throws -> Picture {
        try decodedPicture(data, "the photo", most: 2048)
    }
}

struct SaidView: View {
    let question: String
    let answer: String

    var body: some View {
        VStack(alignment: .leading, spacing: 4) {
            Text(question).bold()
            Text(answer)
        }
    }
}
