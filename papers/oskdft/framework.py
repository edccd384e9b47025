"""What is learnt from what: one student, two branches, one step (spec oskdft 1, 4.5).

KD branch: speech -> student without adapters -> KD loss against the teacher's hidden states.
SV branch: speech -> the same student with adapters -> back-end -> speaker classification.
Both losses are added: the shared weights learn from both, the adapters, the back-end and the
classifier from the second, the KD heads from the first.
"""

import torch

from shared.framework import Framework
from shared.losses.class_weights import weighted_mean


class OneStep(Framework):
    """Distils and fine-tunes a student in one step; with one branch alone, does that alone.

    Args:
        student: learns; its adapters act in the SV branch.
        teacher: frozen; None: no KD branch.
        kd: loss of the KD branch, on the states of student and teacher.
        backend: states -> embedding; None: no SV branch.
        criterion: speaker classifier.
        class_weights: (C,) of the speakers.
    """

    def __init__(
        self, student, teacher=None, kd=None, backend=None, criterion=None, class_weights=None
    ):
        super().__init__()
        self.student, self.teacher, self.kd = student, teacher, kd
        self.backend, self.criterion = backend, criterion
        self.register_buffer('class_weights', class_weights)
        if teacher is not None:
            self.freeze('teacher', saved=False)
        for name, parameter in student.named_parameters():
            unused = '.adapter.' in name and backend is None
            unused |= name.endswith('masked_spec_embed') and not student.masks.time_prob
            parameter.requires_grad_(not unused)

    def groups(self):
        """Parameters by what sets their learning rate (spec 5.1)."""
        found = {'student': [], 'adapters': [], 'speakers': []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                of_speakers = name.startswith(('backend.', 'criterion.'))
                kind = 'adapters' if '.adapter.' in name else 'student'
                found['speakers' if of_speakers else kind].append(parameter)
        return [{'name': name, 'params': group} for name, group in found.items() if group]

    def networks(self):
        """State of what the phase hands on, by the kind of its file: what runs at inference."""
        names = ('student',) if self.backend is None else ('student', 'backend')
        return {name: self.get_submodule(name).state_dict() for name in names}

    def forward(self, waves, labels, teacher_waves, kd_waves=None, kd_weight=1.0, total=None):
        """Losses of B utterances.

        Args:
            waves: (B, L) of the SV branch.
            labels: (B,) speakers.
            teacher_waves: (B, L) as the teacher hears the KD branch.
            kd_waves: (B, L) of the student's KD branch; None: `waves`, whose frames are shared.
            kd_weight: of the KD loss beside the other.
            total: sum of class weights that `weighted_mean` divides by; None: that of these.
        """
        kd_states, sv_states = self.branches(waves, kd_waves)
        losses = {}
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(teacher_waves).states
            losses['kd_loss'] = self.kd(kd_states, target)
        if self.backend is not None:
            each, logits = self.criterion(self.backend(sv_states), labels)
            losses['sv_loss'] = weighted_mean(each, labels, self.class_weights, total)
            losses['accuracy'] = 100 * (logits.argmax(1) == labels).float().mean()
        weight = kd_weight if self.backend is not None else 1.0
        return {'loss': weight * losses.get('kd_loss', 0) + losses.get('sv_loss', 0), **losses}

    def branches(self, waves, kd_waves=None):
        """Hidden states of the KD rows, then of the SV rows; None where there is no branch.

        The convolutions know no adapter and no dropout: the same waves pass them once (9.2-11).
        """
        count = len(waves)
        if self.teacher is None:
            return None, self.student(waves).states
        if self.backend is None:
            none = torch.zeros(count, dtype=torch.bool, device=waves.device)
            heard = waves if kd_waves is None else kd_waves
            return self.student(heard, adapt=none).states, None
        if kd_waves is None:
            x, _ = self.student.features(waves)
            x = torch.cat([x, x])
        else:
            x, _ = self.student.features(torch.cat([kd_waves, waves]))
        adapt = torch.arange(2 * count, device=waves.device) >= count
        states = self.student.encode(x, adapt=adapt).states
        return [state[:count] for state in states], [state[count:] for state in states]
