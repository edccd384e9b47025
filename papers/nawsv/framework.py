"""What is learnt from what.

Warm-up: clean and noisy speech -> student -> hint loss against the teacher's clean hidden states,
and through the linear head E-APN. Fine-tuning: speech -> student -> back-end -> AAM-softmax.
"""

import torch

from shared.framework import Framework
from shared.losses.class_weights import weighted_mean
from shared.losses.hint import hint_loss


class WarmUp(Framework):
    """Noise-adaptive warm-up: hears noise as the teacher hears clean speech, speakers kept."""

    def __init__(self, student, teacher, head, e_apn, args):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.head, self.e_apn = head, e_apn
        self.hint_lambda, self.embed_weight = args['hint_lambda'], args['embed_loss_weight']
        self.separate_batch = args['separate_batch']
        self.freeze('teacher', saved=False)
        self.learn('all')

    def learn(self, what):
        """'adapters' alone, or 'all' of the student; head and E-APN learn always."""
        self.same_cnn = what == 'adapters'  # the student's is still the teacher's
        learnable(self.student, lambda name: what == 'all' or '.adapter.' in name)

    def networks(self):
        """State of what the phase hands on, by the kind of its file."""
        names = ('student', 'head', 'e_apn')
        return {name: self.get_submodule(name).state_dict() for name in names}

    def forward(self, clean, noisy, reference):
        """Losses of N pairs: clean (N, L) of one utterance, the other noisy and as reference."""
        count = len(clean)
        student_states, teacher_states = self.states(clean, noisy, reference)
        # state 0, the input of the first layer, is not compared (spec 4.1)
        hint = hint_loss(student_states[1:], teacher_states[1:], self.hint_lambda)

        s1, s2 = self.head(student_states).split(count)  # two calls: the head's batch statistics
        t1, t2 = self.head(teacher_states).split(count)  # of student and teacher are apart
        e_apn = self.e_apn(s2, s1, t1, t2)  # spec 4.2
        loss = hint + self.embed_weight * e_apn  # spec 4.3
        return {'loss': loss, 'hint_loss': hint, 'e_apn_loss': e_apn}

    def states(self, clean, noisy, reference):
        """Hidden states of the student for [clean, noisy], of the teacher for [clean, reference]."""
        count, adapt = len(clean), None
        if self.separate_batch:
            adapt = torch.arange(2 * count, device=clean.device) >= count
        with torch.no_grad():
            if self.same_cnn:  # the clean speech passes it once for both
                x, _ = self.teacher.features(torch.cat([noisy, clean, reference]))
                student_in = torch.cat([x[count : 2 * count], x[:count]])
                teacher_in = x[count:]
            else:
                teacher_in, _ = self.teacher.features(torch.cat([clean, reference]))
            teacher_states = self.teacher.encode(teacher_in).states
        if not self.same_cnn:
            student_in, _ = self.student.features(torch.cat([clean, noisy]))
        return self.student.encode(student_in, adapt=adapt).states, teacher_states


class FineTuning(Framework):
    """Speaker classification on the warmed-up student, which is frozen at first."""

    def __init__(self, student, backend, criterion, class_weights):
        super().__init__()
        self.student, self.backend, self.criterion = student, backend, criterion
        self.register_buffer('class_weights', class_weights)
        learnable(self.student, lambda name: True)

    def learn(self, what):
        """'backend' and classifier with the student frozen, or 'all'."""
        self.unfreeze('student')
        learnable(self.student, lambda name: what == 'all')
        if what == 'backend':
            self.freeze('student')

    def networks(self):
        """State of what the phase hands on, by the kind of its file."""
        criterion = {**self.criterion.state_dict(), 'class_weights': self.class_weights}
        student, backend = self.student.state_dict(), self.backend.state_dict()
        return {'student': student, 'backend': backend, 'criterion': criterion}

    def forward(self, waves, labels, total=None):
        """Class-weighted AAM-softmax with top-k penalty of waves (B, L) (spec 4.4).

        `total`: sum of weights that `weighted_mean` divides by.
        """
        embeddings = self.backend(self.student(waves).states)
        losses, logits = self.criterion(embeddings, labels)
        loss = weighted_mean(losses, labels, self.class_weights, total)
        return {'loss': loss, 'accuracy': 100 * (logits.argmax(1) == labels).float().mean()}


def learnable(student, chosen):
    """Lets the chosen parameters of a student learn; the mask vector only where masks use it."""
    for name, parameter in student.named_parameters():
        unused = name == 'masked_spec_embed' and not student.masks.time_prob
        parameter.requires_grad_(chosen(name) and not unused)
